"""The reward curve of a run: training reward per step, held-out evaluations, and the staleness strip below.

    python benchmarks/plot_reward.py runs/debug_cpu-seed0 reward.png

Needs matplotlib (the extra ``plots``). Everything comes from the run's metrics.jsonl.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from intellect_jax.monitor.metrics import Row, read_metrics
from intellect_jax.monitor.summary import surviving

WINDOW = 9  # steps of the running mean
REWARD, HELD_OUT, STALE, INK, GRID = "#2a6fbb", "#d1491b", "#6b7a8f", "#22303f", "#e3e8ee"


def evaluations(rows: list[Row]) -> list[tuple[int, float]]:
    """(version, held-out reward), one for each version: the latest."""
    found = {row["eval/version"]: row["eval/reward"] for row in rows if "eval/reward" in row}
    return sorted(found.items())


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Centred mean over ``window`` values, over fewer at both ends."""
    ones = np.ones(min(window, len(values)))
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


def draw(rows: list[Row], out: Path, title: str) -> None:
    """Writes the picture; ``rows`` must hold at least one RL step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    steps = surviving(rows, "trainer")
    plt.rcParams.update({"font.size": 10, "axes.edgecolor": GRID, "text.color": INK, "axes.labelcolor": INK})
    layout = {"height_ratios": [4, 1], "hspace": 0.12}
    figure, (top, strip) = plt.subplots(2, 1, figsize=(8, 4.6), dpi=160, sharex=True, gridspec_kw=layout)
    x = np.array([row["step"] for row in steps])
    _draw_reward(top, x, steps, evaluations(rows))
    _draw_staleness(strip, x, steps)
    top.set_title(title, loc="left", fontsize=11, fontweight="bold")
    for axes in (top, strip):
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.tick_params(colors=INK, length=0)
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, bbox_inches="tight", facecolor="white")
    plt.close(figure)


def _draw_reward(axes: Any, x: np.ndarray, steps: list[Row], held_out: list[tuple[int, float]]) -> None:
    reward = np.array([row["reward/mean"] for row in steps])
    axes.plot(x, reward, color=REWARD, alpha=0.3, linewidth=1)
    axes.plot(x, running_mean(reward, WINDOW), color=REWARD, linewidth=2.2, label="training reward, sampled")
    if held_out:
        versions, values = zip(*held_out, strict=True)
        between = (0, (4, 3)) if len(held_out) > 2 else ""  # a line through two points would claim too much
        style = {"color": HELD_OUT, "linewidth": 1.2, "linestyle": between, "marker": "o", "markersize": 7}
        axes.plot(versions, values, **style, label="held-out reward, greedy", zorder=3)
        text = {"xytext": (0, -17), "textcoords": "offset points", "ha": "center", "color": HELD_OUT, "weight": "bold"}
        for point in (held_out[0], held_out[-1]):
            axes.annotate(f"{point[1]:.2f}", point, **text)
    axes.set_ylim(min(0.3, reward.min() - 0.05), 1.06)
    axes.set_ylabel("reward")
    axes.legend(loc="lower right", frameon=False)


def _draw_staleness(axes: Any, x: np.ndarray, steps: list[Row]) -> None:
    """Mean and maximum, over the trained tokens, of the versions between writing a token and training on it."""
    mean = np.array([row["staleness/mean"] for row in steps])
    largest = np.array([row["staleness/max"] for row in steps])
    axes.fill_between(x, 0, largest, step="mid", color=STALE, alpha=0.2, linewidth=0, label="largest")
    axes.fill_between(x, 0, mean, step="mid", color=STALE, alpha=0.7, linewidth=0, label="mean")
    axes.set_ylim(0, max(largest.max(), 1) * 1.7)  # room for the legend
    axes.yaxis.get_major_locator().set_params(integer=True, nbins=3)
    axes.set_ylabel("staleness,\nversions")
    axes.set_xlabel("RL step")
    axes.legend(loc="upper left", ncols=2, frameon=False, fontsize=8)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path, help="a run directory")
    parser.add_argument("out", type=Path, help="the picture to write, .png or .svg")
    parser.add_argument("--title", default="", help="default: the run's name")
    options = parser.parse_args(argv)
    rows = read_metrics(options.run_dir)
    if not surviving(rows, "trainer"):
        print(f"{options.run_dir}: metrics.jsonl has no RL step to draw", file=sys.stderr)
        return 2
    draw(rows, options.out, options.title or options.run_dir.resolve().name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
