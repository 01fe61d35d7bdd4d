"""Rows from every device of the expert axis to every other, as many as there are.

Mesh axes: ``expert`` ragged_all_to_all, or all_to_all of padded buckets.

XLA:CPU has no ragged_all_to_all. XLA:GPU's default kernel for it has given wrong gradients without a word (jax 0.11,
marin-community/marin issue 8077: the primitive itself, not its transpose) and crashed (openxla/xla issue 47283). Told
by --xla_gpu_unsupported_enable_ragged_all_to_all_decomposer=true, XLA itself sends padded buckets, unbounded ones.

``sizes[i, j]`` rows go from device i to device j. A device's rows to send lie in the order of their destinations, those
it receives in the order of their sources, without gaps; what is left of a buffer is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from intellect_jax.parallel.experts.shard import AXIS


@dataclass(frozen=True)
class Wire:
    sent: int  # rows of the sender's buffer
    received: int  # rows of the receiver's
    bucket: int  # most rows that one device may send to one other, where they are padded
    ragged: bool


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def send(wire: Wire, rows: Float[Array, "sent d"], sizes: Int[Array, "n n"]) -> Float[Array, "received d"]:
    """Each row to its destination. Linear, with :func:`send_back` as transpose."""
    return _move(wire, rows, sizes, wire.received)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def send_back(wire: Wire, rows: Float[Array, "received d"], sizes: Int[Array, "n n"]) -> Float[Array, "sent d"]:
    """Each row to where it came from."""
    return _move(wire, rows, sizes.T, wire.sent)


send.defvjp(
    lambda wire, rows, sizes: (send(wire, rows, sizes), sizes),
    lambda wire, sizes, grad: (send_back(wire, grad, sizes), None),
)
send_back.defvjp(
    lambda wire, rows, sizes: (send_back(wire, rows, sizes), sizes),
    lambda wire, sizes, grad: (send(wire, grad, sizes), None),
)


def _move(wire: Wire, rows: Array, sizes: Array, out: int) -> Array:
    me = jax.lax.axis_index(AXIS)
    sending, receiving = sizes[me], sizes[:, me]
    if wire.ragged:
        places = _before(sizes, axis=0)[me]  # where my rows begin at each receiver
        buffer = jnp.zeros((out, rows.shape[1]), rows.dtype)
        return jax.lax.ragged_all_to_all(rows, buffer, _before(sending), sending, places, receiving, axis_name=AXIS)
    slot = jnp.arange(wire.bucket)
    source = jnp.where(slot < sending[:, None], _before(sending)[:, None] + slot, rows.shape[0])
    buckets = jax.lax.all_to_all(_rows(rows, source), AXIS, 0, 0)
    row, ends = jnp.arange(out), jnp.cumsum(receiving)
    sender = jnp.searchsorted(ends, row, side="right")  # the number of devices past the last row: out of bounds
    bucket = sender * wire.bucket + row - _before(receiving).at[sender].get(mode="clip")
    return _rows(buckets.reshape(-1, rows.shape[1]), bucket)


def _before(sizes: Array, axis: int = 0) -> Array:
    return jnp.cumsum(sizes, axis=axis) - sizes


def _rows(rows: Array, index: Array) -> Array:
    """``rows[index]``, 0 where the index is past the end."""
    return rows.at[index].get(mode="fill", fill_value=0)
