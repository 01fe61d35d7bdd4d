"""Attention over packed rows on an NVIDIA GPU: tokamax's flash kernels, Mosaic from Hopper on, Triton before.

Each query sees one range of keys. Forward, blocks outside a range are skipped; backward those above the diagonal, where
queries and keys are the same tokens. cuDNN's packed layout, the other flash attention that JAX has, needs a bound on
the segments of a row, keeps a statistic of every query for each of that many, and does not compile without the GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int
from tokamax._src.ops.attention import base  # the public function takes no ranges of keys
from tokamax._src.ops.attention.api import IMPLEMENTATIONS

from intellect_jax.kernels.attention.chunked import Tokens, finite

_TILE = 256  # tokens: what the kernels' blocks of queries divide


def attention(
    q: Float[Array, "b s h c"],
    k: Float[Array, "b s k c"],
    v: Float[Array, "b s k c"],
    segment_ids: Int[Array, "b s"],
    positions: Int[Array, "b s"],
    device: jax.Device,
) -> Float[Array, "b s h c"]:
    """As ``plain.packed_attention``, where the tokens of a segment lie in the order of their positions, from 0.

    Shapes as there, bfloat16 or float16. ``device``: one like those it is compiled for, which need not be here.
    """
    first = jnp.arange(_padded(positions).shape[1]) - _padded(positions)
    return _attention(*map(_padded, (q, k, v)), first, device)[:, : q.shape[1]]


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(q, k, v, first: Int[Array, "b s"], device: jax.Device):
    return _run(q, k, v, _causal(first), device)[0]


def _attention_fwd(q, k, v, first, device):
    result = _run(q, k, v, _causal(first), device)
    out, statistics = jax.tree.map(lambda x: checkpoint_name(x, "attention"), result)
    return out, (q, k, v, first, out, statistics)


def _attention_bwd(device, saved, grad):
    q, k, v, first, out, statistics = saved
    return *_gradients(q, k, v, _causal(first), device, out, statistics, grad), None


_attention.defvjp(_attention_fwd, _attention_bwd)


@dataclass(frozen=True)
class Hops:
    """``forward`` and ``backward`` as of ``chunked``, where keys lie so that every query sees one range of them.

    That holds in the order of a row, and in zig-zag.
    """

    device: jax.Device

    def forward(self, q, k, v, queries: Tokens, keys: Tokens) -> tuple[Float[Array, "b s h c"], Float[Array, "b s h"]]:
        """See ``chunked.forward``."""
        start, stop = _ranges(queries, keys)
        ranges = base.Mask(k_start=start[:, None], k_end=stop[:, None])
        out, (largest, total) = _run(_padded(q), _padded(k), _padded(v), ranges, self.device)
        out, lse = out[:, : q.shape[1]], (largest + jnp.log(total)).mT[:, : q.shape[1]]
        sees = (start < stop)[:, : q.shape[1], None]
        return jnp.where(sees[..., None], out, 0.0).astype(jnp.float32), jnp.where(sees, lse, -jnp.inf)

    def backward(self, q, k, v, queries: Tokens, keys: Tokens, out, lse, grad) -> tuple[Array, Array, Array]:
        """See ``chunked.backward``."""
        start, stop = _ranges(queries, keys)
        ranges = base.Mask(k_start=start[:, None], k_end=stop[:, None])
        lse = _padded(finite(lse)).mT
        results = (_padded(out), (lse, jnp.ones_like(lse)), _padded(grad))
        dq, dk, dv = _gradients(_padded(q), _padded(k), _padded(v), ranges, self.device, *results)
        s, t = q.shape[1], k.shape[1]
        return dq[:, :s].astype(jnp.float32), dk[:, :t].astype(jnp.float32), dv[:, :t].astype(jnp.float32)


def _ranges(queries: Tokens, keys: Tokens) -> tuple[Int[Array, "b s"], Int[Array, "b s"]]:
    """First key that each query sees, and the one past the last; equal where it sees none."""
    ids, positions = map(_padded, queries)
    same = (ids[:, :, None] == keys.segment_ids[:, None]) & (ids[:, :, None] > 0)
    seen = same & (keys.positions[:, None] <= positions[:, :, None])
    start = jnp.argmax(seen, axis=-1)
    return start, start + seen.sum(axis=-1)


def _padded(x: Array) -> Array:
    """[B, S, ...] to whole tiles; positions of 0 let what fills them see itself alone."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % _TILE), *((0, 0),) * (x.ndim - 2)))


def _causal(first: Int[Array, "b s"]) -> base.Mask:
    return base.Mask(k_start=first[:, None], is_causal=True)


def _run(q, k, v, mask: base.Mask, device: jax.Device) -> tuple[Array, tuple[Array, Array]]:
    """Output, and of each query [B, H, S] the largest score and the softmax's sum relative to it."""
    with jax.default_device(device):  # tokamax asks it what to compile for
        return _kernel(device)(q, k, v, mask=mask, return_residuals=True)


def _gradients(q, k, v, mask: base.Mask, device, out, statistics, grad) -> tuple[Array, Array, Array]:
    with jax.default_device(device):
        kernel = _kernel(device)
        bound = kernel.bind(q, k, v, mask=mask)
        options = {name: value for name, value in bound.kwargs.items() if name != "return_residuals"}
        found = kernel.vjp(statistics, out, grad, *bound.args, **options)
    return found["q"], found["k"], found["v"]


def _kernel(device: jax.Device) -> Any:
    if not flags.FLAGS.is_parsed():  # tokamax would take this program's arguments for its own
        flags.FLAGS.mark_as_parsed()
    return IMPLEMENTATIONS["mosaic_gpu" if float(device.compute_capability) >= 9.0 else "triton"]
