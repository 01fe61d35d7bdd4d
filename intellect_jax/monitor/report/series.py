"""Curves of a run: one value a training step, or the mean of several steps where there are too many to draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from intellect_jax.monitor.metrics import Row
from intellect_jax.monitor.report.clock import SILENT, Clock
from intellect_jax.monitor.summary import surviving

POINTS = 400  # of a curve, at most
WINDOW = 5.0  # seconds
LAGS = 32  # columns of the staleness histogram; the last one holds all that is staler

TRAINER = {
    "reward": "reward/mean",
    "loss": "loss/total",
    "grad": "grad/norm",
    "entropy": "policy/entropy",
    "kl": "mismatch/kl",
    "staleness_mean": "staleness/mean",
    "staleness_max": "staleness/max",
    "wait": "time/wait_s",
    "train": "time/step_s",
    "publish": "time/publish_s",
}
SFT = {"loss": "loss/ce", "grad": "grad/norm", "learning_rate": "optimizer/learning_rate"}


def rl_series(rows: list[Row], clock: Clock) -> dict[str, Any]:
    """Columns of equal length over RL steps: ``step`` (the last of those averaged), ``time`` (s), and the curves.

    ``staleness`` counts trained tokens, [point][lag]; None where the run logged no histogram.
    """
    steps = surviving(rows, "trainer")
    if not steps:
        return {"step": []}
    columns = {name: _column(steps, metric) for name, metric in TRAINER.items()}
    columns["kl_fresh"] = _column(steps, "mismatch/fresh_kl_sum") / _positive(_column(steps, "mismatch/fresh_count"))
    columns["trainer_speed"] = _column(steps, "tokens/total") / _positive(columns["train"])
    end = clock([row["time"] for row in steps])
    busy = np.nan_to_num(columns["wait"]) + np.nan_to_num(columns["train"]) + np.nan_to_num(columns["publish"])
    edges = np.concatenate([[max(end[0] - busy[0], 0.0)], end])
    columns["other"] = np.maximum(np.diff(edges) - busy, 0.0)
    columns |= _sampler(rows, clock, edges) | _queue(rows, steps, clock, edges)
    return {
        "step": _last([row["step"] for row in steps]),
        "time": rounded(_last(end)),
        **{name: rounded(_binned(values, name.endswith("_max"))) for name, values in columns.items()},
        "staleness": _staleness(steps),
    }


def sft_series(rows: list[Row], clock: Clock) -> dict[str, Any]:
    """The same for the supervised steps."""
    steps = surviving(rows, "sft")
    return {
        "step": _last([row["step"] for row in steps]),
        "time": rounded(_last(clock([row["time"] for row in steps]))),
        **{name: rounded(_binned(_column(steps, metric))) for name, metric in SFT.items()},
    }


def evaluations(rows: list[Row], clock: Clock) -> list[dict[str, Any]]:
    """One entry a version, oldest first; a version that was made and evaluated again counts as of the last time."""
    done = {row["eval/version"]: row for row in rows if row["role"] == "orchestrator" and "eval/reward" in row}
    return [
        {"step": version, "time": rounded(clock([row["time"]]))[0]}
        | {name.removeprefix("eval/"): rounded([row[name]])[0] for name in row if name.startswith("eval/")}
        for version, row in sorted(done.items())
    ]


def rounded(values: Iterable[float]) -> list[float | None]:
    """Five significant digits; None for what JSON cannot hold."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in map(float, values)]


def _column(rows: list[Row], name: str) -> np.ndarray:
    return np.array([row.get(name, math.nan) for row in rows], float)


def _positive(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, values, math.nan)


def _starts(count: int) -> np.ndarray:
    """Where each point's steps start; every point stands for equally many, but for the last."""
    return np.arange(0, count, math.ceil(count / POINTS) or 1)


def _last(values: Any) -> list[Any]:
    """Of each point's steps the last one's value."""
    ends = [*_starts(len(values))[1:], len(values)] if len(values) else []
    return [values[end - 1] for end in ends]


def _binned(values: np.ndarray, largest: bool = False) -> np.ndarray:
    """Mean (or maximum) of each point's steps, of those that have a value."""
    if not len(values):
        return values
    starts, known = _starts(len(values)), np.isfinite(values)
    if largest:
        return np.maximum.reduceat(np.where(known, values, -math.inf), starts)
    sums, counts = (np.add.reduceat(part, starts) for part in (np.where(known, values, 0.0), known.astype(float)))
    return sums / _positive(counts)


def _staleness(steps: list[Row]) -> list[list[int]] | None:
    lags = {name: int(name.rpartition("_")[2]) for row in steps for name in row if name.startswith("staleness/hist_")}
    if not lags:
        return None
    counts = np.zeros((len(steps), min(max(lags.values()) + 1, LAGS)), int)
    for name, lag in lags.items():
        counts[:, min(lag, LAGS - 1)] += np.nan_to_num(_column(steps, name)).astype(int)
    return np.add.reduceat(counts, _starts(len(steps))).tolist()


def _sampler(rows: list[Row], clock: Clock, edges: np.ndarray) -> dict[str, np.ndarray]:
    """Per step: tokens/s and requests of all samplers together, and the seconds for which one had requests or none."""
    by_sampler: dict[str, list[Row]] = {}
    for row in rows:
        if "tokens/generated" in row:
            by_sampler.setdefault(row["role"], []).append(row)
    width = _positive(np.diff(edges))
    totals = {name: np.zeros(len(width)) for name in ("sampler_speed", "running", "waiting", "sampler_busy")}
    for series in by_sampler.values():
        time = clock([row["time"] for row in series])
        generated = _column(series, "tokens/generated")
        gains = np.diff(generated, prepend=0.0)
        produced = np.cumsum(np.where(gains < 0, generated, gains))  # a restarted process counts from 0 again
        running, waiting = (_column(series, f"requests/{name}") for name in ("running", "waiting"))
        totals["sampler_speed"] += np.diff(np.interp(edges, time, produced)) / width
        totals["running"] += _integral(time, running, edges) / width
        totals["waiting"] += _integral(time, waiting, edges) / width
        totals["sampler_busy"] += _busy(time, running, edges) / len(by_sampler)
    totals["sampler_idle"] = np.maximum(np.diff(edges) - totals["sampler_busy"], 0.0)
    return totals if by_sampler else {}


def _busy(time: np.ndarray, running: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Seconds of each step with a request running: the step's share of WINDOW seconds more on either side of it, since
    a sampler tells only once a second how many requests it runs.
    """
    begin, end = edges[:-1] - WINDOW, edges[1:] + WINDOW
    share = _integrated(time, running > 0)(np.stack([begin, end]))
    return np.diff(share, axis=0)[0] / (end - begin) * np.diff(edges)


def _integral(time: np.ndarray, values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.diff(_integrated(time, values)(edges))


def _integrated(time: np.ndarray, values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The integral of ``values`` up to any moment, each held until the next one, though not for long."""
    held = np.minimum(np.diff(time), SILENT)
    sums = np.concatenate([[0.0], np.cumsum(values[:-1] * held)])
    return lambda moments: np.interp(moments, time, sums)


def _queue(rows: list[Row], steps: list[Row], clock: Clock, edges: np.ndarray) -> dict[str, np.ndarray]:
    """Per step: batches in the queue (mean over time), and the seconds for which there was one or none.

    A batch is in the queue from its cut (the orchestrator's row) until the trainer has it (``time/start``).
    """
    cut_rows = surviving([row for row in rows if "reward/mean" in row], "orchestrator")
    cuts = {row["step"]: row["time"] for row in cut_rows}
    both = [(cuts[row["step"]], row["time/start"]) for row in steps if row["step"] in cuts and "time/start" in row]
    if not both:
        return {}
    cut, taken = clock([pair[0] for pair in both]), clock([pair[1] for pair in both])
    moments = np.concatenate([cut, np.maximum(taken, cut)])
    order = np.argsort(moments, kind="stable")
    moments = moments[order]
    depth = np.cumsum(np.repeat([1.0, -1.0], len(cut))[order])
    held = np.diff(moments)

    def until(level: np.ndarray) -> np.ndarray:
        return np.diff(np.interp(edges, moments, np.concatenate([[0.0], np.cumsum(level[:-1] * held)])))

    ready = until(depth > 0)
    return {
        "queue": until(depth) / _positive(np.diff(edges)),
        "batch_ready": ready,
        "batch_none": np.maximum(np.diff(edges) - ready, 0.0),
    }
