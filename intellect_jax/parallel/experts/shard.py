"""What the strategies share: one device's view of the expert axis, and buffers that fall back instead of dropping."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from intellect_jax.kernels.grouped_matmul import LowRank

AXIS = "expert"


class Kernels(NamedTuple):
    """Weights of this device's experts, whole along D."""

    gate: Float[Array, "e d f"]
    up: Float[Array, "e d f"]
    down: Float[Array, "e f d"]
    low_rank: LowRank | None


class Shard(NamedTuple):
    """``ways`` devices share the experts; this one holds ``experts`` of them."""

    ways: int
    experts: int
    capacity: float  # rows that buffers hold, in balanced loads; 0: any load
    axes: tuple[str, ...]  # every axis of the mesh
    ragged: bool  # whether exchanges are ragged, else padded

    def here(self, ids: Int[Array, "t k"]) -> Int[Array, "t k"]:
        """Ids among all experts as ids among this device's; ``experts`` (none) for others'."""
        mine = ids - jax.lax.axis_index(AXIS) * self.experts
        return jnp.where((mine >= 0) & (mine < self.experts), mine, self.experts)

    def bound(self, balanced: float, most: int) -> int:
        """Rows of a buffer: ``capacity`` times the balanced load, never more than can come."""
        return min(ceil(self.capacity * balanced), most) if self.capacity else most


def expected_share(ways: int, experts_per_token: int) -> float:
    """Probability that a token has one of its experts on a given device, when experts are chosen evenly."""
    return 1.0 - (1.0 - 1.0 / ways) ** experts_per_token


def either(
    flag: Bool[Array, ""],
    rare: Callable[..., Array],
    common: Callable[..., Array],
    fixed: Any,
    *args: Any,
) -> Array:
    """``rare(fixed, *args)`` where ``flag`` holds, else ``common(fixed, *args)``; differentiable in ``args``.

    The gradient of a plain ``lax.cond`` keeps room for what both branches save, the bounded one's and the worst case's.
    Here neither saves anything: the backward pass takes the same branch again.
    """

    @jax.custom_vjp
    def run(flag, fixed, args):
        return jax.lax.cond(flag, rare, common, fixed, *args)

    def forward(flag, fixed, args):
        return run(flag, fixed, args), (flag, fixed, args)

    def backward(saved, grad):
        flag, fixed, args = saved

        def pull(function):
            return lambda: jax.vjp(lambda *a: function(fixed, *a), *args)[1](grad)

        return None, None, jax.lax.cond(flag, pull(rare), pull(common))

    run.defvjp(forward, backward)
    return run(flag, fixed, args)


def in_pieces(
    compute: Callable[..., Array],
    tokens: int,
    nowhere: int,
    ids: Int[Array, "t k"],
    x: Float[Array, "t d"],
    weights: Float[Array, "t k"],
) -> Float[Array, "t d"]:
    """``compute(ids, x, weights)`` on at most ``tokens`` tokens at a time, one after another, saving nothing between.

    ``nowhere``: an expert id that no device holds, for the padding of the last piece.
    """
    count = -(-x.shape[0] // tokens)
    padding = ((0, count * tokens - x.shape[0]), (0, 0))
    pieces = (jnp.pad(ids, padding, constant_values=nowhere), jnp.pad(x, padding), jnp.pad(weights, padding))
    split = jax.tree.map(lambda a: a.reshape(count, tokens, -1), pieces)
    y = jax.lax.map(jax.checkpoint(lambda piece: compute(*piece), prevent_cse=False), split)
    return y.reshape(count * tokens, -1)[: x.shape[0]]
