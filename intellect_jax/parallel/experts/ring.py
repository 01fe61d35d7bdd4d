"""Every device of the expert axis computes its experts for the tokens of all of them, and the results are summed.

Mesh axes: ``expert`` all_gather of tokens, ids and weights, psum_scatter of results (each the other's transpose).

Named after the "ring of experts" of ring collectives. Its messages are as long for any routing, so nothing has to be
agreed upon, and it runs wherever dense collectives do. It sends each token to every device: with few devices, or many
experts a token, most need it anyway.
"""

from __future__ import annotations

from functools import partial

import jax
from jaxtyping import Array, Float, Int

from intellect_jax.kernels.grouped_matmul import expert_mlp, fits
from intellect_jax.parallel.experts.shard import AXIS, Kernels, Shard, either, in_pieces


def ring_experts(
    shard: Shard,
    x: Float[Array, "t d"],
    ids: Int[Array, "t k"],
    weights: Float[Array, "t k"],
    kernels: Kernels,
) -> Float[Array, "t d"]:
    """Exact for any routing. A load that the bounded buffer cannot hold is computed in pieces; as the collectives stand
    outside, each device decides that for itself."""
    tokens, k = ids.shape
    x, ids, weights = (jax.lax.all_gather(a, AXIS, tiled=True) for a in (x, ids, weights))
    here = shard.here(ids)
    rows = shard.bound(tokens * k, x.shape[0] * k)
    if rows >= x.shape[0] * k:
        y = expert_mlp(x, here, weights, *kernels)
    else:
        whole, pieces = partial(_whole, rows), partial(_pieces, rows, shard.experts)
        y = either(~fits(here, shard.experts, rows), pieces, whole, here, x, weights, kernels)
    return jax.lax.psum_scatter(y, AXIS, tiled=True)


def _whole(rows: int, ids: Array, x: Array, weights: Array, kernels: Kernels) -> Array:
    return expert_mlp(x, ids, weights, *kernels, capacity=rows)


def _pieces(rows: int, experts: int, ids: Array, x: Array, weights: Array, kernels: Kernels) -> Array:
    """Pieces of so few tokens that the buffer holds any load of theirs."""

    def piece(ids: Array, x: Array, weights: Array) -> Array:
        return expert_mlp(x, ids, weights, *kernels)

    return in_pieces(piece, max(rows // ids.shape[1], 1), experts, ids, x, weights)
