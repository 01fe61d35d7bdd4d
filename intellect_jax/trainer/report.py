"""What one step says in metrics.jsonl: sums from the device and counts from the batch, under grouped names."""

from __future__ import annotations

import numpy as np

from intellect_jax.types import PackedBatch


def token_counts(batch: PackedBatch) -> dict[str, float]:
    """Counts over the batch's tokens; staleness is that of trained tokens that the policy wrote."""
    mask, staleness = batch.arrays["loss_mask"], batch.arrays["staleness"]
    lags = staleness[mask & (staleness >= 0)]
    return {
        "tokens/total": int((batch.arrays["segment_ids"] > 0).sum()),
        "tokens/trained": int(mask.sum()),
        "tokens/stale": int((lags > 0).sum()),
        "staleness/mean": float(lags.mean()) if lags.size else 0.0,
        "staleness/max": int(lags.max(initial=0)),
        **{f"staleness/hist_{lag}": int(count) for lag, count in enumerate(np.bincount(lags)) if count},
        "mismatch/fresh_count": int((lags == 0).sum()),
    }


def rl_metrics(batch: PackedBatch, sums: dict[str, float]) -> dict[str, float]:
    """Metrics of one RL step; rewards and rollout counts come from the orchestrator with the batch."""
    trained = max(int(batch.arrays["loss_mask"].sum()), 1)
    return {
        **token_counts(batch),
        "loss/total": sums["rl"] + sums["ce"] + sums["ref_kl"],
        "loss/rl": sums["rl"],
        "grad/norm": sums["grad_norm"],
        "policy/entropy": sums["entropy_sum"] / trained,
        "mismatch/kl_sum": sums["kl_sum"],
        "mismatch/kl": sums["kl_sum"] / trained,
        "mismatch/fresh_kl_sum": sums["fresh_kl_sum"],
        "mismatch/fresh_max": sums["fresh_max"],
        **router_metrics(sums),
        **batch.info.get("metrics", {}),
    }


def sft_metrics(batch: PackedBatch, sums: dict[str, float]) -> dict[str, float]:
    """Metrics of one supervised step."""
    return {
        "tokens/total": int((batch.arrays["segment_ids"] > 0).sum()),
        "tokens/trained": int(batch.arrays["loss_mask"].sum()),
        "loss/ce": sums["ce"],
        "grad/norm": sums["grad_norm"],
        **router_metrics(sums),
    }


def router_metrics(sums: dict[str, float]) -> dict[str, float]:
    """How evenly experts were loaded; nothing of a policy without experts."""
    return {name.replace("router_", "router/", 1): value for name, value in sums.items() if name.startswith("router_")}
