"""What one step says in metrics.jsonl: sums from the device and counts from the batch, under grouped names."""

from __future__ import annotations

from typing import Any

import numpy as np

from intellect_jax.types import PackedBatch


def count_tokens(batch: PackedBatch) -> np.ndarray:
    """Counts over the tokens of a batch, or of a part of it, int [2 + most staleness + 1].

    All tokens, member tokens of the loss, and of those that the policy wrote how many are of staleness 0, 1, …
    """
    mask, staleness = batch.arrays["loss_mask"], batch.arrays["staleness"]
    lags = np.bincount(staleness[mask & (staleness >= 0)])
    return np.array([(batch.arrays["segment_ids"] > 0).sum(), mask.sum(), *lags])


def token_metrics(counts: np.ndarray) -> dict[str, float]:
    """What :func:`count_tokens` of a whole batch says."""
    total, trained, *lags = map(int, counts)
    written = sum(lags)
    fresh = lags[0] if lags else 0
    return {
        "tokens/total": total,
        "tokens/trained": trained,
        "tokens/stale": written - fresh,
        "staleness/mean": sum(lag * count for lag, count in enumerate(lags)) / max(written, 1),
        "staleness/max": max((lag for lag, count in enumerate(lags) if count), default=0),
        **{f"staleness/hist_{lag}": count for lag, count in enumerate(lags) if count},
        "mismatch/fresh_count": fresh,
    }


def rl_metrics(counts: np.ndarray, sums: dict[str, float], info: dict[str, Any]) -> dict[str, float]:
    """Metrics of one RL step; rewards and rollout counts come from the orchestrator in the batch's ``info``."""
    trained = max(int(counts[1]), 1)
    return {
        **token_metrics(counts),
        "loss/total": sums["rl"] + sums["ce"] + sums["ref_kl"],
        "loss/rl": sums["rl"],
        "grad/norm": sums["grad_norm"],
        "policy/entropy": sums["entropy_sum"] / trained,
        "mismatch/kl_sum": sums["kl_sum"],
        "mismatch/kl": sums["kl_sum"] / trained,
        "mismatch/fresh_kl_sum": sums["fresh_kl_sum"],
        "mismatch/fresh_max": sums["fresh_max"],
        **router_metrics(sums),
        **info.get("metrics", {}),
    }


def sft_metrics(counts: np.ndarray, sums: dict[str, float]) -> dict[str, float]:
    """Metrics of one supervised step."""
    return {
        "tokens/total": int(counts[0]),
        "tokens/trained": int(counts[1]),
        "loss/ce": sums["ce"],
        "grad/norm": sums["grad_norm"],
        **router_metrics(sums),
    }


def router_metrics(sums: dict[str, float]) -> dict[str, float]:
    """How evenly experts were loaded; nothing of a policy without experts."""
    if "router_max_violation" not in sums:
        return {}
    return {
        "router/max_violation": sums["router_max_violation"],
        "router/load_entropy": sums["router_load_entropy"],
    }
