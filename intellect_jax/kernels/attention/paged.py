"""Attention of new tokens over histories that lie in pages: the reference gathers them, a TPU's kernel reads in place.

Pages of all layers lie in one array, so that a layer's are read through its own page numbers and nothing is sliced.

Shape suffixes: B rows, S new tokens of a row, N pages of a row, T = N * P tokens, P tokens of a page, M pages in all,
K key/value heads, H query heads, G query heads per key/value head, C head width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_LANES = 128  # the TPU kernel takes heads whose width is a multiple


def attention(
    q: Float[Array, "b s h c"],
    k: Float[Array, "k m p c"],
    v: Float[Array, "k m p c"],
    tables: Int[Array, "b n"],
    positions: Int[Array, "b s"],
    kernel: bool = False,
) -> Float[Array, "b s h c"]:
    """softmax(q k / sqrt(C)) v over each row's tokens up to the query's position; softmax in float32.

    ``tables``: the pages of each row's history, in order. ``positions``: of the queries; their own keys are there.
    ``kernel``: by the TPU's, where it takes the shape (one token a row).
    """
    if kernel and q.shape[1] == 1 and q.shape[-1] % _LANES == 0:
        return _by_kernel(q, k, v, tables, positions)
    return reference(q, k, v, tables, positions)


def reference(q, k, v, tables, positions):
    """:func:`attention` over gathered pages."""
    b, s, h, c = q.shape
    heads = k.shape[0]
    keys, values = (x[:, tables].reshape(heads, b, -1, c) for x in (k, v))
    grouped = jnp.moveaxis(q.reshape(b, s, heads, -1, c), 2, 0)
    scores = jnp.einsum("kbsgc,kbtc->kbsgt", grouped, keys, preferred_element_type=jnp.float32) * c**-0.5
    seen = jnp.arange(keys.shape[2]) <= positions[:, :, None]
    scores = jnp.where(seen[None, :, :, None, :], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    out = jnp.einsum("kbsgt,kbtc->kbsgc", weights, values)
    return jnp.moveaxis(out, 0, 2).reshape(b, s, h, c)


def _by_kernel(q, k, v, tables, positions):
    from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention  # imports Mosaic

    pages = tables.shape[1]
    block = next(count for count in (16, 8, 4, 2, 1) if pages % count == 0)
    lengths = positions[:, 0].astype(jnp.int32) + 1
    scaled = (q[:, 0] * q.shape[-1] ** -0.5).astype(q.dtype)
    out = paged_attention(scaled, k, v, lengths, tables, pages_per_compute_block=block)
    return out[:, None].astype(q.dtype)
