"""The lines that a person reads when a run has ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from intellect_jax.monitor.text import duration

CONTENTS = ("summary.json", "metrics.jsonl", "logs/", "rollouts/", "checkpoints/")


def closing_lines(summary: dict[str, Any], run_dir: Path, next_command: str, done: bool = True) -> list[str]:
    """What happened, where things are, and what to do next. ``summary`` as of :func:`summary.summarize`."""
    lines = [f"{'Done' if done else 'Ended early'}: {_what(summary)} in {duration(summary['wall_seconds'])}"]
    if summary["eval_reward_before_rl"] is not None or summary["eval_reward_after_rl"] is not None:
        lines += [f"  held-out reward       {_change(summary, 'eval_reward')}"]
        if summary["eval_exact_before_rl"] is not None or summary["eval_exact_after_rl"] is not None:
            lines += [f"  held-out exact match  {_change(summary, 'eval_exact')}"]
    if summary["steps"]:
        lines += [
            f"  trained on            {summary['trained_tokens']:,} tokens",
            f"    of older versions   {_percent(summary['stale_token_fraction'])}",
            f"    spanning versions   {summary['mixed_version_rollouts']:,} rollouts",
            f"  sampler               {_number(summary['sampler_tokens_per_second'])} tokens/s",
            f"  trainer               {_number(summary['trainer_tokens_per_second'])} tokens/s while it computes",
            f"    waiting             {_percent(summary['trainer_idle_fraction'])} of its time",
        ]
    there = ", ".join(name for name in CONTENTS if (run_dir / name.rstrip("/")).exists())
    lines += [f"  run                   {run_dir}: {there}"]
    if (run_dir / "report.html").exists():
        lines += [f"  report                {run_dir / 'report.html'}   (open it in a browser)"]
    if summary["export_dir"]:
        lines += [f"  Hugging Face model    {summary['export_dir']}"]
    return [*lines, f"next: {next_command}"]


def _what(summary: dict[str, Any]) -> str:
    kinds = [(summary["sft_steps"], "supervised"), (summary["steps"], "RL")]
    return " and ".join(f"{count:,} {kind} steps" for count, kind in kinds if count) or "no step"


def _change(summary: dict[str, Any], name: str) -> str:
    before, after = summary[f"{name}_before_rl"], summary[f"{name}_after_rl"]
    return " → ".join("–" if value is None else f"{value:.3f}" for value in (before, after))


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f}%"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"
