"""Whether a finished run lost no task and trained none twice."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from intellect_jax.monitor.metrics import read_metrics
from intellect_jax.monitor.summary import surviving
from intellect_jax.orchestrator.outcomes import Outcomes


def read_books(run_dir: Path) -> dict[str, Any]:
    """What the ledger and the surviving batches say."""
    ledger = json.loads((run_dir / "ledger.json").read_text())
    outcomes = Outcomes.decode(ledger["outcomes"])
    steps = [row["step"] for row in surviving(read_metrics(run_dir), "trainer")]
    batches = [set(pq.read_table(path)["task_id"].to_pylist()) for path in _rollouts(run_dir, steps)]
    trained = Counter(task for batch in batches for task in batch)
    return {
        "steps": steps,
        "dispatched": len(outcomes),
        "picked": sum(ledger["picked"].values()),
        "outcomes": outcomes.counts(),
        "unfinished": len(ledger["unfinished"]),
        "trained_twice": [task for task, times in trained.items() if times > 1],
        "trained_but_not_in_ledger": sorted(set(trained) ^ set(outcomes.of("trained"))),
    }


def complaints(books: dict[str, Any], steps: int) -> list[str]:
    """What is wrong with the books of a run of ``steps`` RL steps; nothing in a sound run."""
    checks = {
        "steps are missing": books["steps"] == list(range(1, steps + 1)),
        "a dispatched task has no outcome": books["dispatched"] == books["picked"],
        "a running task is not on the list of the unfinished": books["outcomes"].get("running", 0)
        == books["unfinished"],
        "a task was trained twice": not books["trained_twice"],
        "batches and ledger disagree on what was trained": not books["trained_but_not_in_ledger"],
        "tasks were lost to errors": not books["outcomes"].get("error"),
    }
    return [what for what, fine in checks.items() if not fine]


def _rollouts(run_dir: Path, steps: list[int]) -> list[Path]:
    return [run_dir / "rollouts" / f"step-{step:06d}.parquet" for step in steps]
