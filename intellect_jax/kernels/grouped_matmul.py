"""Mixture-of-experts matmuls in time proportional to the tokens routed, without dropping any.

Tokens are sorted by expert and each expert's rows padded to whole blocks, so that a grouped matmul is a batched one
over blocks with gathered weights. ``jax.lax.ragged_dot`` computes every expert densely on a CPU (40-70 times slower).

Shape suffixes: T tokens, K experts per token, E experts, P padded rows, N blocks of M rows, D in, F out.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int


class Plan(NamedTuple):
    """Where each (token, choice) goes. Rows of blocks that no token fills point at token T (a zero row)."""

    source: Int[Array, " p"]  # token that fills each padded row; T where empty
    choice: Int[Array, " p"]  # flat index token*K + k of that row; T*K where empty
    destination: Int[Array, "t k"]  # padded row of each (token, choice)
    block_expert: Int[Array, " n"]


def block_rows(assignments: int, experts: int) -> int:
    """Rows of one block: about a quarter of an expert's mean load, a power of two between 8 and 128.

    Smaller blocks pad less, larger ones gather weights less often.
    """
    mean = max(assignments // (4 * experts), 1)
    return min(max(1 << (mean.bit_length() - 1), 8), 128)


def plan(expert_ids: Int[Array, "t k"], experts: int, rows: int) -> Plan:
    """Sorts the assignments by expert into blocks of ``rows`` rows; static shapes whatever the routing."""
    tokens, k = expert_ids.shape
    flat = expert_ids.reshape(-1)
    blocks = (tokens * k + experts * (rows - 1)) // rows
    sizes = jnp.zeros(experts, jnp.int32).at[flat].add(1)
    ends = jnp.cumsum((sizes + rows - 1) // rows)  # in blocks
    order = jnp.argsort(flat, stable=True)
    rank = jnp.arange(tokens * k) - (jnp.cumsum(sizes) - sizes)[flat[order]]
    row = (ends - (sizes + rows - 1) // rows)[flat[order]] * rows + rank
    destination = jnp.zeros(tokens * k, jnp.int32).at[order].set(row.astype(jnp.int32), unique_indices=True)
    choice = jnp.full(blocks * rows, tokens * k, jnp.int32).at[row].set(order.astype(jnp.int32), unique_indices=True)
    block_expert = jnp.minimum(jnp.searchsorted(ends, jnp.arange(blocks), side="right"), experts - 1)
    return Plan(choice // k, choice, destination.reshape(tokens, k), block_expert.astype(jnp.int32))


@jax.custom_vjp
def dispatch(x: Float[Array, "t d"], plan: Plan) -> Float[Array, "p d"]:
    """Copies each token to its padded rows, zero where empty. Both directions gather: a scatter is slow on CPU."""
    return jnp.concatenate([x, jnp.zeros_like(x[:1])])[plan.source]


def _dispatch_fwd(x, plan):
    return dispatch(x, plan), plan


def _dispatch_bwd(plan, grad):
    return grad[plan.destination].sum(axis=1), None


dispatch.defvjp(_dispatch_fwd, _dispatch_bwd)


@jax.custom_vjp
def combine(y: Float[Array, "p d"], weights: Float[Array, "t k"], plan: Plan) -> Float[Array, "t d"]:
    """Sum over each token's choices of weight times its padded row."""
    return jnp.einsum("tkd,tk->td", y[plan.destination], weights.astype(y.dtype))


def _combine_fwd(y, weights, plan):
    return combine(y, weights, plan), (y, weights, plan)


def _combine_bwd(saved, grad):
    y, weights, plan = saved
    row_weight = jnp.append(weights.reshape(-1), 0)[plan.choice].astype(y.dtype)
    grad_y = jnp.concatenate([grad, jnp.zeros_like(grad[:1])])[plan.source] * row_weight[:, None]
    grad_weights = jnp.einsum("tkd,td->tk", y[plan.destination], grad).astype(weights.dtype)
    return grad_y, grad_weights, None


combine.defvjp(_combine_fwd, _combine_bwd)


def grouped_matmul(
    x: Float[Array, "p d"], w: Float[Array, "e d f"], block_expert: Int[Array, " n"]
) -> Float[Array, "p f"]:
    """Rows of block n times ``w[block_expert[n]]``."""
    blocks = x.reshape(block_expert.shape[0], -1, x.shape[-1])
    return jnp.einsum("nmd,ndf->nmf", blocks, w[block_expert]).reshape(x.shape[0], -1)


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
) -> Float[Array, "t d"]:
    """Weighted sum of the chosen experts' SwiGLU outputs; dropless, exact for any routing."""
    experts = gate.shape[0]
    layout = plan(expert_ids, experts, block_rows(expert_ids.size, experts))
    rows = dispatch(x, layout)

    def matmul(x: Array, w: Array) -> Array:
        return checkpoint_name(grouped_matmul(x, w, layout.block_expert), "mlp")

    if low_rank is None:
        hidden = jax.nn.silu(matmul(rows, gate)) * matmul(rows, up)
        return combine(matmul(hidden, down), weights, layout)
    inner = matmul(rows, low_rank.gate_up_a)
    gated, upped = matmul(rows, gate) + matmul(inner, low_rank.gate_b), matmul(rows, up) + matmul(inner, low_rank.up_b)
    hidden = jax.nn.silu(gated) * upped
    out = matmul(hidden, down) + matmul(matmul(hidden, low_rank.down_a), low_rank.down_b)
    return combine(out, weights, layout)


def expert_mlp_reference(x, expert_ids, weights, gate, up, down):
    """The same by computing every expert for every token: slow and obvious."""
    hidden = jax.nn.silu(jnp.einsum("td,edf->tef", x, gate)) * jnp.einsum("td,edf->tef", x, up)
    every = jnp.einsum("tef,efd->ted", hidden, down)
    chosen = jnp.take_along_axis(every, expert_ids[:, :, None], axis=1)
    return jnp.einsum("tkd,tk->td", chosen, weights)
