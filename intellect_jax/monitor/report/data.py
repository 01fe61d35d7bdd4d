"""Everything that report.html shows, as one compact JSON value, whatever the length of the run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from intellect_jax.monitor.metrics import Row, read_metrics
from intellect_jax.monitor.report.clock import run_clock
from intellect_jax.monitor.report.rollouts import reader_data
from intellect_jax.monitor.report.series import evaluations, rl_series, sft_series
from intellect_jax.monitor.report.timeline import timeline
from intellect_jax.monitor.summary import summarize


def report_data(run_dir: Path) -> dict[str, Any]:
    """The report of a run that goes on or has ended; raises FileNotFoundError when there is no config.json."""
    config = json.loads((run_dir / "config.json").read_text())
    rows = read_metrics(run_dir)
    clock = run_clock(rows)
    return {
        "name": config["run"]["name"],
        "status": status(rows, config["trainer"]["max_steps"]),
        "written": time.time(),
        "started": rows[0]["time"] if rows else None,
        "max_steps": config["trainer"]["max_steps"],
        "facts": facts(config),
        "summary": summarize(run_dir),
        "rl": rl_series(rows, clock),
        "sft": sft_series(rows, clock),
        "evals": evaluations(rows, clock),
        "timeline": timeline(rows, clock),
        "reader": reader_data(run_dir),
    }


def status(rows: list[Row], max_steps: int) -> str:
    """``running``, ``done`` or ``ended early``; a run whose supervisor was killed looks as if it still ran."""
    marks = [row for row in rows if "run/started" in row or "run/ended" in row]
    if not marks or "run/started" in marks[-1]:
        return "running"
    reached = max((row["step"] for row in rows if row["role"] == "trainer" and row["step"] is not None), default=0)
    return "done" if reached >= max_steps else "ended early"


def facts(config: dict[str, Any]) -> list[tuple[str, str]]:
    """What a reader has to know of the configuration: (label, value)."""
    model, orchestrator, sampler = config["model"], config["orchestrator"], config["sampler"]
    shape = f"{model['family']}, {model['num_hidden_layers']} layers × {model['hidden_size']}"
    if model["n_routed_experts"]:
        shape += f", {model['n_routed_experts']} experts"
    return [
        ("model", model["path"] or shape),
        ("environment", ", ".join(env["name"] for env in config["envs"])),
        ("algorithm", f"{config['algorithm']['loss']}, {config['algorithm']['advantage']}"),
        ("batch", f"{orchestrator['batch_size']} rollouts in groups of {orchestrator['group_size']}"),
        ("learning rate", f"{config['trainer']['optimizer']['learning_rate']:g}"),
        ("off-policy bound", f"{orchestrator['max_off_policy_steps']} steps"),
        ("sampler", f"{sampler['num_servers']} × {sampler['backend']}, on update: {sampler['on_update']}"),
        ("seed", str(config["seed"])),
    ]
