"""Attention over packed rows on a TPU: JAX's splash attention, a Pallas flash kernel with its own gradient.

Its causal mask is static, by the order in which tokens lie: pairs of blocks above the diagonal are skipped. Segments
are data, and masked.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float, Int

_LANES = 128  # of a TPU: a block is a multiple
_LARGEST_BLOCK = 512


def attention(
    q: Float[Array, "b s h c"],
    k: Float[Array, "b s k c"],
    v: Float[Array, "b s k c"],
    segment_ids: Int[Array, "b s"],
    positions: Int[Array, "b s"],
    interpret: bool = False,
) -> Float[Array, "b s h c"]:
    """As ``plain.packed_attention``, where the tokens of a segment lie in the order of their positions.

    ``interpret``: computes what the kernel says on any platform, slowly, for tests.
    """
    s, heads = q.shape[1:3]
    q, k, v = (_heads_first(x) for x in (q * q.shape[-1] ** -0.5, k, v))
    segments = jnp.pad(segment_ids, ((0, 0), (0, -s % _LANES)))
    out = jax.vmap(_kernel(q.shape[2], heads, interpret))(q, k, v, kernel.SegmentIds(segments, segments))
    return jnp.transpose(out, (0, 2, 1, 3))[:, :s]  # type: ignore[arg-type]  # asked for no residuals: one array


def _heads_first(x: Float[Array, "b s h c"]) -> Float[Array, "b h t c"]:
    """Padded to a whole number of blocks."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % _LANES), (0, 0), (0, 0))).transpose(0, 2, 1, 3)


def _kernel(length: int, heads: int, interpret: bool) -> kernel.SplashAttentionKernel:
    block = next(size for size in (_LARGEST_BLOCK, 256, _LANES) if length % size == 0)
    sizes = kernel.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    mask = masks.MultiHeadMask([masks.CausalMask((length, length))] * heads)
    return kernel.make_splash_mha(
        mask,
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name="attention",
        interpret=interpret,
    )
