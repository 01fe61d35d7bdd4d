"""Each token travels to the devices that hold experts of its, once to each, and their partial sums travel back.

Mesh axes: ``expert`` all_gather of ids and weights (from which every device knows what comes), and the exchanges of
``exchange.py`` there and back, ragged or padded. All axes: pmax of one flag.

One copy for each device, not for each expert, as in DeepEP (DeepSeek-V3, arXiv 2412.19437, section 3.2.2): with 8 of
128 experts over 8 devices a token visits 5.3 devices on average. Buffers are bounded; a load that they cannot hold
takes the ring instead, in pieces, as dropping tokens would change the policy's log-probabilities.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from intellect_jax.kernels.grouped_matmul import expert_mlp, fits
from intellect_jax.parallel.experts.exchange import Wire, send, send_back
from intellect_jax.parallel.experts.shard import AXIS, Kernels, Shard, either, expected_share, in_pieces


class Route(NamedTuple):
    """Where tokens go and where they come from. S rows to send, R to receive, N devices."""

    token: Int[Array, " s"]  # of each row to send; T where there is none
    row: Int[Array, "t k"]  # row of the copy that serves each choice
    first: Bool[Array, "t k"]  # whether no earlier choice of the token has the same copy
    sizes: Int[Array, "n n"]
    here: Int[Array, "r k"]  # of each received row: ids among this device's experts
    origin: Int[Array, " r"]  # and its index among all devices' tokens; N T where there is none


def ragged_experts(
    shard: Shard,
    x: Float[Array, "t d"],
    ids: Int[Array, "t k"],
    weights: Float[Array, "t k"],
    kernels: Kernels,
) -> Float[Array, "t d"]:
    """Exact for any routing; the devices of the whole mesh agree on whether all buffers suffice."""
    tokens, k = ids.shape
    most = shard.ways * tokens
    received = shard.bound(most * expected_share(shard.ways, k), most)
    rows = shard.bound(tokens * k, received * k)
    bucket = tokens if shard.ragged else shard.bound(tokens * expected_share(shard.ways, k), tokens)
    wire = Wire(tokens * min(shard.ways, k), received, bucket, shard.ragged)
    route = _route(shard, wire, ids)
    exchanged = partial(_exchanged, wire, rows)
    if bucket == tokens and received == most and rows == most * k:
        return exchanged((ids, route), x, weights, kernels)
    coming = route.sizes[:, jax.lax.axis_index(AXIS)].sum()
    overflow = (coming > received) | (route.sizes.max() > bucket) | ~fits(route.here, shard.experts, rows)
    overflow = jax.lax.pmax(overflow.astype(jnp.int32), shard.axes) > 0
    in_ring = partial(_in_ring, shard, max(min(received, rows // k) // shard.ways, 1))
    return either(overflow, in_ring, exchanged, (ids, route), x, weights, kernels)


def _route(shard: Shard, wire: Wire, ids: Int[Array, "t k"]) -> Route:
    tokens, k = ids.shape
    owner = ids // shard.experts
    to = (owner[:, None, :] == jnp.arange(shard.ways)[:, None]).any(-1)  # [T, N]
    order = to.T.reshape(-1)  # rows are sent in the order of destinations
    place = (jnp.cumsum(order) - 1).reshape(shard.ways, tokens)
    (index,) = jnp.nonzero(order, size=wire.sent, fill_value=order.size)
    token = jnp.where(index < order.size, index % tokens, tokens)
    row = place[owner, jnp.arange(tokens)[:, None]]
    earlier = jnp.tril(jnp.ones((k, k), bool), -1)
    first = ~((owner[:, :, None] == owner[:, None, :]) & earlier).any(-1)
    sizes = jax.lax.all_gather(to.sum(0, dtype=jnp.int32), AXIS)
    here = shard.here(jax.lax.all_gather(ids, AXIS, tiled=True))
    (origin,) = jnp.nonzero((here < shard.experts).any(-1), size=wire.received, fill_value=here.shape[0])
    here = here.at[origin].get(mode="fill", fill_value=shard.experts)
    return Route(token, row, first, sizes, here, origin)


def _exchanged(wire: Wire, rows: int, fixed: tuple[Array, Route], x: Array, weights: Array, kernels: Kernels) -> Array:
    _, route = fixed
    weights = jax.lax.all_gather(weights, AXIS, tiled=True).at[route.origin].get(mode="fill", fill_value=0)
    y = expert_mlp(send(wire, _copies(x, route), route.sizes), route.here, weights, *kernels, capacity=rows)
    return _sum(send_back(wire, y, route.sizes), route)


def _in_ring(
    shard: Shard, tokens: int, fixed: tuple[Array, Route], x: Array, weights: Array, kernels: Kernels
) -> Array:
    """Pieces of so few tokens that the bounded buffers would hold any load of theirs."""

    def piece(ids: Array, x: Array, weights: Array) -> Array:
        x, ids, weights = (jax.lax.all_gather(a, AXIS, tiled=True) for a in (x, ids, weights))
        return jax.lax.psum_scatter(expert_mlp(x, shard.here(ids), weights, *kernels), AXIS, tiled=True)

    return in_pieces(piece, tokens, shard.ways * shard.experts, fixed[0], x, weights)


@jax.custom_vjp
def _copies(x: Float[Array, "t d"], route: Route) -> Float[Array, "s d"]:
    """The rows to send. Its transpose is :func:`_sum`; both gather, as scattered sums are slow or not reproducible."""
    return x.at[route.token].get(mode="fill", fill_value=0)


@jax.custom_vjp
def _sum(rows: Float[Array, "s d"], route: Route) -> Float[Array, "t d"]:
    """Sum of each token's copies."""
    return jnp.where(route.first[:, :, None], rows[route.row], 0).sum(axis=1)


_copies.defvjp(lambda x, route: (_copies(x, route), route), lambda route, grad: (_sum(grad, route), None))
_sum.defvjp(lambda rows, route: (_sum(rows, route), route), lambda route, grad: (_copies(grad, route), None))
