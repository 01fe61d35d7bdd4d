"""No expert axis: tokens stay where they are, and every device computes all experts for its own.

Mesh axes: no collective here; the weights' are in ``parallel/experts/__init__.py``.
"""

from __future__ import annotations

from jaxtyping import Array, Float, Int

from intellect_jax.kernels.grouped_matmul import expert_mlp
from intellect_jax.parallel.experts.shard import Kernels, Shard


def local_experts(
    shard: Shard,
    x: Float[Array, "t d"],
    ids: Int[Array, "t k"],
    weights: Float[Array, "t k"],
    kernels: Kernels,
) -> Float[Array, "t d"]:
    """Every assignment is here: the buffer of any load is that of a balanced one, and needs no bound."""
    return expert_mlp(x, ids, weights, *kernels)
