"""Where each token's copies lie among rows sorted by expert, and the two moves: tokens to rows, rows to tokens.

Shape suffixes: T tokens, K experts per token, E experts, P rows of the buffer, D width.
"""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Layout(NamedTuple):
    """Rows sorted by expert, stably, without gaps; the rows past ``sizes.sum()`` hold nothing."""

    choice: Int[Array, " p"]  # flat index token * K + k of the assignment in each row; T * K where empty
    destination: Int[Array, "t k"]  # row of each assignment; P where it is not here
    sizes: Int[Array, " e"]  # rows of each expert

    @property
    def source(self) -> Int[Array, " p"]:
        """Token in each row; T where empty."""
        return self.choice // self.destination.shape[1]


def fits(expert_ids: Int[Array, "t k"], experts: int, capacity: int) -> Bool[Array, ""]:
    """Whether a buffer of ``capacity`` rows holds every assignment that is here (see :func:`layout`)."""
    return jnp.sum(expert_ids < experts) <= capacity


def layout(expert_ids: Int[Array, "t k"], experts: int, capacity: int | None = None) -> Layout:
    """Sorts assignments by expert into ``capacity`` rows (default T * K); static shapes whatever the routing.

    An id of ``experts`` or more says that the assignment is not here. Assignments beyond the capacity have no row:
    ask :func:`fits` first.
    """
    flat = expert_ids.reshape(-1)
    rows = flat.size if capacity is None else min(capacity, flat.size)
    order = jnp.argsort(flat, stable=True)  # what is not here comes last
    ends = jnp.minimum(jnp.cumsum(jnp.zeros(experts, jnp.int32).at[flat].add(1, mode="drop")), rows)
    filled = ends[-1]
    row = jnp.zeros(flat.size, jnp.int32).at[order].set(jnp.arange(flat.size, dtype=jnp.int32), unique_indices=True)
    destination = jnp.where(row < filled, row, rows).reshape(expert_ids.shape)
    choice = jnp.where(jnp.arange(rows) < filled, order[:rows].astype(jnp.int32), flat.size)
    return Layout(choice, destination, jnp.diff(ends, prepend=0))


@jax.custom_vjp
def dispatch(x: Float[Array, "t d"], layout: Layout) -> Float[Array, "p d"]:
    """Copies each token to its rows, zero where empty. Both directions gather: a scatter is slow on every device."""
    return _take(x, layout.source)


def _dispatch_fwd(x, layout):
    return dispatch(x, layout), layout


def _dispatch_bwd(layout, grad):
    return reduce(jnp.add, _by_choice(grad, layout)).astype(grad.dtype), None


dispatch.defvjp(_dispatch_fwd, _dispatch_bwd)


@jax.custom_vjp
def combine(y: Float[Array, "p d"], weights: Float[Array, "t k"], layout: Layout) -> Float[Array, "t d"]:
    """Sum over each token's assignments of weight times row; those that are not here add nothing."""
    terms = (rows * weight[:, None] for rows, weight in zip(_by_choice(y, layout), weights.T, strict=True))
    return sum(terms).astype(y.dtype)


def _combine_fwd(y, weights, layout):
    return combine(y, weights, layout), (y, weights, layout)


def _combine_bwd(saved, grad):
    y, weights, layout = saved
    row_weight = _take(weights.reshape(-1), layout.choice).astype(y.dtype)
    grad_weights = jnp.stack([jnp.sum(rows * grad, axis=-1) for rows in _by_choice(y, layout)], axis=1)
    return _take(grad, layout.source) * row_weight[:, None], grad_weights.astype(weights.dtype), None


combine.defvjp(_combine_fwd, _combine_bwd)


def _by_choice(rows: Float[Array, "p d"], layout: Layout) -> list[Float[Array, "t d"]]:
    """Each token's row for each of its choices, float32: one array [T, K, D] of them would never be fused away."""
    return [_take(rows, layout.destination[:, k]).astype(jnp.float32) for k in range(layout.destination.shape[1])]


def _take(x: Array, index: Int[Array, " *n"]) -> Array:
    """``x[index]``, 0 where the index is past the end."""
    return x.at[index].get(mode="fill", fill_value=0)
