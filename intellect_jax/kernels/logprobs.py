"""Log-probability and entropy of given tokens from final hidden states, in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_CHUNK = 32  # tokens of each row whose logits are there at once


def token_logprobs(
    logits: Float[Array, "b s v"], targets: Int[Array, "b s"], temperature: Float[Array, "b s"]
) -> tuple[Float[Array, "b s"], Float[Array, "b s"]]:
    """log softmax(logits / temperature)[target], and the entropy of that distribution, in nats."""
    log_p = jax.nn.log_softmax(logits / temperature[..., None], axis=-1)
    chosen = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    return chosen, -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def member_logprobs(
    hidden: Float[Array, "b s d"],
    kernel: Float[Array, "d v"],
    targets: Int[Array, "b s"],
    temperature: Float[Array, "b s"],
    members: Bool[Array, "b s"],
) -> tuple[Float[Array, "b s"], Float[Array, "b s"]]:
    """:func:`token_logprobs` of float32 ``hidden @ kernel`` where ``members`` is set, 0 elsewhere.

    Each row's members are moved to its front and projected in chunks. Chunks without a member cost nothing, and logits
    of the whole row, of prompts above all, never exist: neither here nor for the backward pass, which projects again.
    """
    rows, length = members.shape
    chunk = min(_CHUNK, length)
    order = jnp.argsort(~members, axis=1, stable=True)
    padding = ((0, 0), (0, -length % chunk))

    def chunks(x: Array) -> Array:
        """[b, s, ...] → [chunks, b, chunk, ...], members first."""
        index = order.reshape(*order.shape, *(1,) * (x.ndim - 2))
        moved = jnp.take_along_axis(x, index, axis=1)
        padded = jnp.pad(moved, (*padding, *((0, 0),) * (x.ndim - 2)), mode="edge")
        return jnp.moveaxis(padded.reshape(rows, -1, chunk, *x.shape[2:]), 1, 0)

    def compute(part):
        logits = jnp.matmul(part[0], kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)
        return token_logprobs(logits, *part[1:])

    def nothing(part):
        return (jnp.zeros((rows, chunk), jnp.float32),) * 2

    @jax.checkpoint  # around the condition: within it, the scan would keep the head's kernel once a chunk
    def body(_, scanned):
        some, part = scanned
        return None, jax.lax.cond(some, compute, nothing, part)

    some = chunks(members).any(axis=(1, 2))
    _, parts = jax.lax.scan(body, None, (some, (chunks(hidden), chunks(targets), chunks(temperature))))
    back = jnp.argsort(order, axis=1)
    whole = (jnp.moveaxis(part, 0, 1).reshape(rows, -1)[:, :length] for part in parts)
    logprobs, entropy = (jnp.where(members, jnp.take_along_axis(x, back, axis=1), 0.0) for x in whole)
    return logprobs, entropy
