"""Attention over packed rows on a CPU by the kernels of native/attention.h, in float32.

Shape suffixes: B rows, S tokens, H query heads, K key/value heads, C head width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from intellect_jax.kernels.native import call


@jax.custom_vjp
def attention(
    q: Float[Array, "b s h c"],
    k: Float[Array, "b s k c"],
    v: Float[Array, "b s k c"],
    segment_ids: Int[Array, "b s"],
    positions: Int[Array, "b s"],
) -> Float[Array, "b s h c"]:
    """softmax(q k / sqrt(C)) v over the keys of a query's segment at its position or before; 0 for padding."""
    return _forward(q, k, v, segment_ids, positions)[0]


def _forward(q, k, v, segment_ids, positions):
    shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (q.shape, q.shape[:3]))
    out, lse = call("Attention", tuple(shapes), *map(_wide, (q, k, v)), *map(_whole, (segment_ids, positions)))
    return out.astype(q.dtype), lse


def _save(q, k, v, segment_ids, positions):
    out, lse = (checkpoint_name(x, "attention") for x in _forward(q, k, v, segment_ids, positions))
    return out, (q, k, v, segment_ids, positions, out, lse)


def _pull_back(saved, grad):
    q, k, v, segment_ids, positions, out, lse = saved
    shapes = tuple(jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in (q, k, v))
    wide = map(_wide, (q, k, v))
    places = map(_whole, (segment_ids, positions))
    found = call("AttentionGradient", shapes, *wide, *places, _wide(out), lse, _wide(grad))
    return *(x.astype(like.dtype) for x, like in zip(found, (q, k, v), strict=True)), None, None


attention.defvjp(_save, _pull_back)


def _wide(x: Array) -> Array:
    return x.astype(jnp.float32)


def _whole(x: Array) -> Array:
    return x.astype(jnp.int32)
