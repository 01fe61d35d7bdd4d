"""What a person reads when the guard stops a run, and the file with all the rest."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from intellect_jax.files import write_json
from intellect_jax.trainer.guard.comparison import CAP, Comparison
from intellect_jax.trainer.guard.suspects import Circumstances, Suspect

FILE = "guard.json"
WORST = 8  # tokens in the message
KEPT = 200  # tokens in the file
CONTEXT = 8  # tokens before one that are shown with it


def message(seen: Comparison, found: list[Suspect], known: Circumstances, step: int, tokenizer: Any, file: Path) -> str:
    """The run's last words."""
    beyond = int((seen.errors() > known.bound).sum())
    lines = [
        f"the sampler's log-probabilities are not the trainer's: mean |Δ| {seen.error():.2g} nats over "
        f"{int(seen.compared.sum())} tokens of version {known.version}, at most {known.bound:g} is right; {beyond} "
        f"tokens are beyond it, the largest by {seen.largest():.2g}. Stopped before step {step}, which is not taken",
        "suspects, the likeliest first:",
    ]
    for number, suspect in enumerate(found, start=1):
        lines.append(f"  {number}. {suspect.name} (explains {suspect.explains:.0%}): {suspect.evidence}")
        if number == 1 or suspect.explains >= found[0].explains / 2:
            lines.append(f"     {suspect.advice}")
    lines.append("worst tokens (log-probability of the trainer, of the sampler):")
    lines += [f"  {_line(token)}" for token in tokens(seen, known, tokenizer, WORST)]
    return "\n".join([*lines, f"all of it: {file}"])


def _line(token: dict[str, Any]) -> str:
    return (
        f"{token['trainer']:9.4f} {token['sampler']:9.4f}  row {token['row']} column {token['column']} position "
        f"{token['position']}, version {token['version']}, temperature {token['temperature']:g}: "
        f"{token['before']!r} → {token['text']!r} (id {token['id']})"
    )


def tokens(seen: Comparison, known: Circumstances, tokenizer: Any, count: int) -> list[dict[str, Any]]:
    """The worst ones: where they stand, what they say, what both sides think of them."""
    return [_token(seen, known, tokenizer, row, column) for row, column in seen.worst(count)]


def _token(seen: Comparison, known: Circumstances, tokenizer: Any, row: int, column: int) -> dict[str, Any]:
    start = max(column - CONTEXT, column - int(seen.positions[row, column]), 0)
    ids = seen.tokens[row, start : column + 1].tolist()
    return {
        "row": row,
        "column": column,
        "position": int(seen.positions[row, column]),
        "id": ids[-1],
        "text": _decoded(tokenizer, ids[-1:]),
        "before": _decoded(tokenizer, ids[:-1]),
        "trainer": _finite(seen.trainer[row, column]),
        "sampler": _finite(seen.sampler[row, column]),
        "version": str(known.version),
        "temperature": float(seen.temperature[row, column]),
        "experts": seen.routed[row, column - 1].tolist(),  # [L, K] at the position that predicts it
    }


def _decoded(tokenizer: Any, ids: list[int]) -> str:
    """Ids that the tokenizer does not have are shown as numbers."""
    size = len(tokenizer)
    return "".join(tokenizer.decode([i]) if i < size else f"<{i}>" for i in ids)


def _finite(value: np.floating) -> float:
    """As JSON can hold it: what is no number is far below any log-probability."""
    return float(value) if math.isfinite(value) else -1e30


def write(path: Path, seen: Comparison, found: list[Suspect], known: Circumstances, step: int, tokenizer: Any) -> None:
    """``guard.json``: everything, whole or not at all."""
    errors = seen.errors()
    quantiles = np.quantile(errors, (0.5, 0.9, 0.99)) if errors.size else np.zeros(3)
    write_json(
        path,
        {
            "step": step,
            "version": str(known.version),
            "bound": known.bound,
            "cap": CAP,
            "compared_tokens": int(seen.compared.sum()),
            "mean_error": seen.error(),
            "largest_error": min(seen.largest(), 1e30),
            "quantiles": dict(zip(("0.5", "0.9", "0.99"), map(float, quantiles), strict=True)),
            "checks_passed_before_steps": list(known.passed),
            "dtypes": known.dtypes,
            "suspects": [asdict(suspect) for suspect in found],
            "worst_tokens": tokens(seen, known, tokenizer, KEPT),
        },
    )
