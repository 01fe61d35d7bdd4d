"""The experts' SwiGLU over the tokens routed to them, dropless, in time proportional to the assignments that are here.

Shape suffixes: T tokens, K experts per token, E experts, D hidden width, F experts' width, R rank.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from intellect_jax.kernels.grouped_matmul.layout import combine, dispatch, fits, layout
from intellect_jax.kernels.grouped_matmul.matmul import grouped_matmul


class LowRank(NamedTuple):
    """Low-rank terms of the experts' weights (R rank): x A B is added to x W. Gate and up share their A."""

    gate_up_a: Float[Array, "e d r"]
    gate_b: Float[Array, "e r f"]
    up_b: Float[Array, "e r f"]
    down_a: Float[Array, "e f r"]
    down_b: Float[Array, "e r d"]


def expert_mlp(
    x: Float[Array, "t d"],
    expert_ids: Int[Array, "t k"],
    weights: Float[Array, "t k"],
    gate: Float[Array, "e d f"],
    up: Float[Array, "e d f"],
    down: Float[Array, "e f d"],
    low_rank: LowRank | None = None,
    capacity: int | None = None,
) -> Float[Array, "t d"]:
    """Weighted sum of the chosen experts' SwiGLU outputs; exact for any routing.

    An id of E says that the assignment is not here: it adds 0 and costs no FLOPs. ``capacity`` bounds the buffers' rows
    (default T * K). More assignments than that make the output NaN, never fewer terms: choose by :func:`fits`.
    """
    experts = gate.shape[0]
    plan = layout(expert_ids, experts, capacity)
    if capacity is not None:
        weights = jnp.where(fits(expert_ids, experts, capacity), weights, jnp.nan)
    rows = dispatch(x, plan)

    def matmul(rows: Array, w: Array) -> Array:
        return checkpoint_name(grouped_matmul(rows, w, plan.sizes), "mlp")

    if low_rank is None:
        hidden = jax.nn.silu(matmul(rows, gate)) * matmul(rows, up)
        return combine(matmul(hidden, down), weights, plan)
    inner = matmul(rows, low_rank.gate_up_a)
    gated, upped = matmul(rows, gate) + matmul(inner, low_rank.gate_b), matmul(rows, up) + matmul(inner, low_rank.up_b)
    hidden = jax.nn.silu(gated) * upped
    out = matmul(hidden, down) + matmul(matmul(hidden, low_rank.down_a), low_rank.down_b)
    return combine(out, weights, plan)


def expert_mlp_reference(x, expert_ids, weights, gate, up, down):
    """The same by computing every expert for every token: slow and obvious."""
    hidden = jax.nn.silu(jnp.einsum("td,edf->tef", x, gate)) * jnp.einsum("td,edf->tef", x, up)
    every = jnp.einsum("tef,efd->ted", hidden, down)
    chosen = jnp.take_along_axis(every, expert_ids[:, :, None], axis=1, mode="fill", fill_value=0)
    return jnp.einsum("tkd,tk->td", chosen, weights)
