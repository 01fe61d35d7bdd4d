"""summary.json: what a run did, computed from nothing but its metrics.jsonl and config.json."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from intellect_jax.files import write_json
from intellect_jax.monitor.metrics import Row, read_metrics

LAUNCHER = "launch"  # role of the supervisor's rows: run/started, run/ended, deaths/<role>


def summarize(run_dir: Path) -> dict[str, Any]:
    """The summary as a dict; None where the run has nothing to say.

    Tokens per second are the sampler's generated tokens over the RL phase's wall time, and the trainer's tokens without
    padding over the time it computes. ``trainer_idle_fraction`` is the waiting share of the trainer's RL time.
    """
    config = json.loads((run_dir / "config.json").read_text())
    rows = read_metrics(run_dir)
    steps, supervised = surviving(rows, "trainer"), surviving(rows, "sft")
    exported = run_dir / "export"
    summary = {
        "run_dir": str(run_dir),
        "sampler_backend": config["sampler"]["backend"],
        "steps": max((row["step"] for row in steps), default=0),
        "wall_seconds": wall_seconds(rows),
        "sft_steps": len(supervised),
        **_evaluations(rows),
        **_tokens(steps),
        **_mismatch(steps),
        **_speed(rows, steps),
        "recompilations_after_warmup": recompilations(rows),
        "process_deaths": sum(name.startswith("deaths/") for row in rows for name in row),
        "export_dir": str(exported) if (exported / "config.json").exists() else None,
    }
    return {name: _finite(value) for name, value in summary.items()}


def write_summary(run_dir: Path) -> dict[str, Any]:
    """Writes ``<run_dir>/summary.json`` and returns what it holds."""
    summary = summarize(run_dir)
    write_json(run_dir / "summary.json", summary)
    return summary


def surviving(rows: list[Row], role: str) -> list[Row]:
    """One row per step of a role, in order: a step taken again replaces itself and all that had followed it."""
    kept: list[Row] = []
    for row in rows:
        if row["role"] == role and row["step"] is not None:
            while kept and kept[-1]["step"] >= row["step"]:
                kept.pop()
            kept.append(row)
    return kept


def wall_seconds(rows: list[Row]) -> float:
    """Seconds in which the run was up: from each start to the last row before the next one."""
    total, begun, last = 0.0, None, None
    for row in rows:
        if "run/started" in row or begun is None:
            total += last - begun if begun is not None and last is not None else 0.0
            begun = row["time"]
        last = row["time"]
    return total + (last - begun if begun is not None and last is not None else 0.0)


def counted(values: Iterable[float]) -> float:
    """How much a counter counted that starts from 0 again whenever its process does."""
    total = before = 0.0
    for value in values:
        total += value - before if value >= before else value
        before = value
    return total


def recompilations(rows: list[Row]) -> int:
    """Compilations after warm-up in trainer (SFT and RL are one process) and samplers, restarts included."""
    by_process: dict[str, list[float]] = {}
    for row in rows:
        if "compile/after_warmup" in row:
            process = "trainer" if row["role"] == "sft" else row["role"]
            by_process.setdefault(process, []).append(row["compile/after_warmup"])
    return int(sum(counted(values) for values in by_process.values()))


def _evaluations(rows: list[Row]) -> dict[str, float | None]:
    """Before RL: version 0's latest. After RL: the latest final one."""
    done = [row for row in rows if row["role"] == "orchestrator" and "eval/reward" in row]
    before = [row for row in done if row.get("eval/version") == 0]
    after = [row for row in done if row.get("eval/final")]
    return {
        f"eval_{short}_{when}_rl": of[-1].get(f"eval/{name}") if of else None
        for short, name in (("reward", "reward"), ("exact", "exact_match"))
        for when, of in (("before", before), ("after", after))
    }


def _tokens(steps: list[Row]) -> dict[str, Any]:
    trained = _sum(steps, "tokens/trained")
    return {
        "trained_tokens": int(trained),
        "stale_token_fraction": _ratio(_sum(steps, "tokens/stale"), trained),
        "mixed_version_rollouts": int(_sum(steps, "rollouts/mixed_version")),
        "dropped_rollouts": int(_sum(steps, "rollouts/dropped")),
    }


def _mismatch(steps: list[Row]) -> dict[str, Any]:
    fresh = _sum(steps, "mismatch/fresh_count")
    return {
        "mismatch_kl_mean": _ratio(_sum(steps, "mismatch/kl_sum"), _sum(steps, "tokens/trained")),
        "mismatch_kl_fresh": _ratio(_sum(steps, "mismatch/fresh_kl_sum"), fresh),
        "mismatch_max_fresh": max((row.get("mismatch/fresh_max", 0.0) for row in steps), default=None)
        if fresh
        else None,
    }


def _speed(rows: list[Row], steps: list[Row]) -> dict[str, Any]:
    waiting, computing, publishing = (_sum(steps, f"time/{name}_s") for name in ("wait", "step", "publish"))
    return {
        "trainer_idle_fraction": _ratio(waiting, waiting + computing + publishing),
        "sampler_tokens_per_second": _sampler_speed(rows, steps),
        "trainer_tokens_per_second": _ratio(_sum(steps, "tokens/total"), computing),
    }


def _sampler_speed(rows: list[Row], steps: list[Row]) -> float | None:
    """Generated tokens per second of all samplers together, between the trainer's first wait and its last step."""
    if not steps:
        return None
    begin = steps[0]["time"] - sum(steps[0].get(f"time/{name}_s", 0.0) for name in ("wait", "step", "publish"))
    by_process: dict[str, list[Row]] = {}
    for row in rows:
        if "tokens/generated" in row and begin <= row["time"] <= steps[-1]["time"]:
            by_process.setdefault(row["role"], []).append(row)
    speeds = [
        (counted(row["tokens/generated"] for row in series) - series[0]["tokens/generated"])
        / (series[-1]["time"] - series[0]["time"])
        for series in by_process.values()
        if len(series) > 1
    ]
    return sum(speeds) if speeds else None


def _sum(rows: list[Row], name: str) -> float:
    return sum(row.get(name, 0.0) for row in rows)


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
