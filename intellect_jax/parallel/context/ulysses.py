"""Ulysses: all-to-all from tokens over the devices of an axis to heads over them, whole rows of some heads, and back.

Source: Jacobs et al., "DeepSpeed Ulysses" (2023). Any attention of whole rows serves. Shape suffixes, of one device's
share: B rows, S tokens, H query heads, K key/value heads, C head width.
"""

from __future__ import annotations

from collections.abc import Callable
from math import gcd, lcm

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def attention(
    whole_rows: Callable[..., Array],
    q: Float[Array, "b s h c"],
    k: Float[Array, "b s k c"],
    v: Float[Array, "b s k c"],
    segment_ids: Int[Array, "b s"],
    positions: Int[Array, "b s"],
    axis: str,
) -> Float[Array, "b s h c"]:
    """``whole_rows(q, k, v, segment_ids, positions)`` of rows spread over ``axis``. For use within ``jax.shard_map``.

    Key/value heads that the N devices do not divide are repeated.

    Raises:
        ValueError: the query heads cannot be split so.
    """
    n, heads, kv = jax.lax.axis_size(axis), q.shape[2], k.shape[2]
    if not splits(heads, kv, n):
        raise ValueError(f"{heads} query and {kv} key/value heads cannot be split over {n} devices")
    k, v = (jnp.repeat(x, n // gcd(kv, n), axis=2) for x in (k, v))
    q, k, v = (jax.lax.all_to_all(x, axis, split_axis=2, concat_axis=1, tiled=True) for x in (q, k, v))
    tokens = (jax.lax.all_gather(x, axis, axis=1, tiled=True) for x in (segment_ids, positions))
    out = whole_rows(q, k, v, *tokens)
    return jax.lax.all_to_all(out, axis, split_axis=1, concat_axis=2, tiled=True)


def splits(heads: int, kv_heads: int, devices: int) -> bool:
    """Whether every device can get whole heads, each with the key/value head that it reads."""
    return heads % lcm(kv_heads, devices) == 0
