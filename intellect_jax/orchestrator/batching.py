"""From the groups of one step to the packed batch that the trainer takes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from intellect_jax.data.packing import pack
from intellect_jax.orchestrator.groups import Group
from intellect_jax.orchestrator.rollouts import to_samples
from intellect_jax.types import PackedBatch, Rollout


def make_batch(step: int, groups: list[Group], config: ConfigDict, routed_shape: tuple[int, int] | None) -> PackedBatch:
    """Packs every branch of every rollout; the same groups give the same batch."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    return pack(
        [sample for rollout in rollouts for sample in to_samples(rollout, config)],
        step,
        rows=config.trainer.rows,
        seq_buckets=config.trainer.seq_buckets,
        microbatch_buckets=config.trainer.microbatch_buckets,
        routed_shape=routed_shape,
        current_version=step - 1,
    )


def batch_metrics(groups: list[Group], dropped: Counter[str], found: int, replay: bool = False) -> dict[str, Any]:
    """What the orchestrator counted since the last batch, under grouped names.

    ``found``: how many batches lay ready when the trainer last asked for one. ``replay``: samplers hand over experts.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rewards = np.array([r.reward for r in rollouts])
    names = sorted({name for r in rollouts for name in r.metrics})
    return {
        "reward/mean": float(rewards.mean()),
        "reward/std": float(rewards.std()),
        **{f"env/{name}": float(np.mean([r.metrics.get(name, 0.0) for r in rollouts])) for name in names},
        "rollouts/trained": len(rollouts),
        "rollouts/mixed_version": sum(len(set(r.versions())) > 1 for r in rollouts),
        "rollouts/dropped": sum(dropped.values()),
        **{f"rollouts/dropped_{reason}": count for reason, count in sorted(dropped.items())},
        "rollouts/answer_tokens": float(np.mean([len(r.versions()) for r in rollouts])),
        "rollouts/truncated": float(np.mean([r.finish_reason == "length" for r in rollouts])),
        "rollouts/forked": float(np.mean([len(r.branches()) > 1 for r in rollouts])),
        "rollouts/seconds": float(np.mean([_seconds(r) for r in rollouts])),
        "queue/size": found,
        **({"rollouts/without_routes": float(np.mean([_lacks_routes(r) for r in rollouts]))} if replay else {}),
    }


def _lacks_routes(rollout: Rollout) -> bool:
    return any(node.routed_experts is None for node in rollout.nodes)


def _seconds(rollout: Rollout) -> float:
    return rollout.finished - rollout.started
