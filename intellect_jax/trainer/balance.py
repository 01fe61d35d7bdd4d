"""Loads of experts, and balancing without an auxiliary loss: a router's selection bias follows them after each step
(Wang et al., arXiv 2408.15664, algorithm 1; DeepSeek-V3, arXiv 2412.19437, section 2.1.2).

Shape suffixes: B rows, S tokens of a row, L MoE layers, K experts per token, E experts.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from intellect_jax.models.transformer import Params


def expert_loads(routed: Int[Array, "b s l k"], real: Bool[Array, "b s"], experts: int) -> Float[Array, "l e"]:
    """Assignments of ``real`` tokens to each expert. Compared and summed, not scattered: on a mesh, each device counts
    its own tokens and only the counts are added up."""
    chosen = routed[..., None] == jnp.arange(experts)
    return jnp.sum(chosen & real[:, :, None, None, None], axis=(0, 1, 3), dtype=jnp.int32).astype(jnp.float32)


def balance_metrics(loads: Float[Array, "l e"]) -> dict[str, Array]:
    """Means over layers of max load / mean load - 1 (MaxVio of Wang et al., section 2) and of the entropy of the loads,
    over that of equal ones. Nothing where there are no MoE layers; of no tokens both are 0."""
    if loads.size == 0:
        return {}
    shares = loads / jnp.maximum(loads.sum(axis=-1, keepdims=True), 1.0)
    experts = loads.shape[-1]
    entropy = jax.scipy.special.entr(shares).sum(axis=-1) / jnp.log(max(experts, 2))
    violation = jnp.maximum(shares.max(axis=-1) * experts - 1.0, 0.0)
    return {"router_max_violation": violation.mean(), "router_load_entropy": entropy.mean()}


def balanced(params: Params, loads: Float[Array, "l e"], rate: float) -> Params:
    """``params`` with every router's bias raised by ``rate`` for experts with less than mean load, lowered for those
    with more."""

    def move(path: tuple[Any, ...], leaf: Array) -> Array:
        if [key.key for key in path[-2:]] != ["router", "bias"]:
            return leaf
        return leaf + rate * jnp.sign(loads.mean(axis=-1, keepdims=True) - loads)

    return jax.tree_util.tree_map_with_path(move, params)
