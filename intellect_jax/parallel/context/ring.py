"""Ring attention: keys and values travel around the devices of an axis, and each merges what its queries see of them.

Memory and what travels are linear in a device's share of the row. Sources: Liu, Zaharia, Abbeel, "Ring Attention with
Blockwise Transformers" (2023); the gradient's accumulators travel with their keys, one hop behind, so that they too
are under way while a hop computes. Balanced if the row is laid out by ``zigzag.py``; right in any order.

Shape suffixes, of one device's share: B rows, S tokens, H query heads, K key/value heads, C head width.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from intellect_jax.kernels.attention.chunked import Tokens, finite


class Hops(Protocol):
    """What a hop computes with: ``kernels.attention.chunked``, or another's forward and backward. Hashable."""

    def forward(self, q, k, v, queries: Tokens, keys: Tokens) -> tuple[Array, Array]: ...

    def backward(self, q, k, v, queries: Tokens, keys: Tokens, out, lse, grad) -> tuple[Array, Array, Array]: ...


def attention(
    hops: Hops,
    q: Float[Array, "b s h c"],
    k: Float[Array, "b s k c"],
    v: Float[Array, "b s k c"],
    segment_ids: Int[Array, "b s"],
    positions: Int[Array, "b s"],
    axis: str,
) -> Float[Array, "b s h c"]:
    """``kernels.attention.chunked.attention`` of rows spread over ``axis``. For use within ``jax.shard_map``."""
    return _attention(q, k, v, Tokens(segment_ids, positions), hops, axis)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attention(q, k, v, tokens: Tokens, hops: Hops, axis: str):
    return _forward(q, k, v, tokens, hops, axis)[0]


def _attention_fwd(q, k, v, tokens: Tokens, hops: Hops, axis: str):
    out, lse = (checkpoint_name(x, "attention") for x in _forward(q, k, v, tokens, hops, axis))
    return out, (q, k, v, tokens, out, lse)


def _attention_bwd(hops: Hops, axis: str, saved, grad):
    q, k, v, tokens, out, lse = saved

    def hop(carry, _):
        keys, dq, sums = carry
        following, arrived = _pass_on((keys, sums), axis)
        more_dq, dk, dv = hops.backward(q, keys[0], keys[1], tokens, keys[2], out, lse, grad)
        return (following, dq + more_dq, (arrived[0] + dk, arrived[1] + dv)), None

    start_dq, *start = (jnp.zeros(x.shape, jnp.float32) for x in (q, k, v))
    (_, dq, sums), _ = jax.lax.scan(hop, ((k, v, tokens), start_dq, tuple(start)), length=jax.lax.axis_size(axis))
    dk, dv = _pass_on(sums, axis)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_attention.defvjp(_attention_fwd, _attention_bwd)


def _forward(q, k, v, tokens: Tokens, hops: Hops, axis: str) -> tuple[Float[Array, "b s h c"], Float[Array, "b s h"]]:
    def hop(carry, _):
        keys, out, lse = carry
        following = _pass_on(keys, axis)
        seen, seen_lse = hops.forward(q, keys[0], keys[1], tokens, keys[2])
        return (following, *_merge(out, lse, seen, seen_lse)), None

    nothing = (jnp.zeros(q.shape, jnp.float32), jnp.full(q.shape[:-1], -jnp.inf))
    (_, out, lse), _ = jax.lax.scan(hop, ((k, v, tokens), *nothing), length=jax.lax.axis_size(axis))
    return out.astype(q.dtype), lse


def _merge(out_a, lse_a, out_b, lse_b) -> tuple[Float[Array, "b s h c"], Float[Array, "b s h"]]:
    """Output and logsumexp over two sets of keys from those over each."""
    lse = jnp.logaddexp(lse_a, lse_b)
    weight_a, weight_b = (jnp.exp(x - finite(lse))[..., None] for x in (lse_a, lse_b))
    return out_a * weight_a + out_b * weight_b, lse


def _pass_on(x: Any, axis: str) -> Any:
    """Every device's arrays to the next device."""
    n = jax.lax.axis_size(axis)
    return jax.lax.ppermute(x, axis, [(i, (i + 1) % n) for i in range(n)])
