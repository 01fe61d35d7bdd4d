"""Attention by all scores at once: the reference; softmax in float32.

Shape suffixes: B batch, S queries, T keys, K key/value heads, G query heads per key/value head, C head width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int


def packed_mask(segment_ids: Int[Array, "b s"], positions: Int[Array, "b s"]) -> Bool[Array, "b s s"]:
    """True where a token may look: at tokens of its own segment whose position is not after its own.

    So it holds in whatever order the tokens lie. Padding (segment 0) sees padding.
    """
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    return jnp.logical_and(same, positions[:, :, None] >= positions[:, None, :])


def packed_attention(
    q: Float[Array, "b s h c"],
    k: Float[Array, "b s k c"],
    v: Float[Array, "b s k c"],
    segment_ids: Int[Array, "b s"],
    positions: Int[Array, "b s"],
) -> Float[Array, "b s h c"]:
    """:func:`attend` of packed rows under :func:`packed_mask`."""
    return checkpoint_name(attend(q, k, v, packed_mask(segment_ids, positions)), "attention")


def attend(
    q: Float[Array, "b s h c"],
    k: Float[Array, "b t k c"],
    v: Float[Array, "b t k c"],
    mask: Bool[Array, "b s t"],
) -> Float[Array, "b s h c"]:
    """softmax(q k / sqrt(C)) v with ``mask``; every query must see at least one key."""
    b, s, h, c = q.shape
    grouped = q.reshape(b, s, k.shape[2], -1, c)
    scores = jnp.einsum("bskgc,btkc->bkgst", grouped, k, preferred_element_type=jnp.float32) * c**-0.5
    scores = jnp.where(mask[:, None, None, :, :], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bkgst,btkc->bskgc", weights, v).reshape(b, s, h, c)
