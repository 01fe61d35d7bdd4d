"""Which way to compute attention: as asked, or by platform and length."""

from __future__ import annotations

from jaxtyping import Array, Float, Int

from intellect_jax.kernels.attention import chunked, plain, splash

KERNELS = {"plain": plain.packed_attention, "chunked": chunked.attention, "splash": splash.attention}
_SHORT = 128  # tokens of a row up to which one block holds it all; see benchmarks/attention.py


def attention(
    name: str,
    platform: str,
    q: Float[Array, "b s h c"],
    k: Float[Array, "b s k c"],
    v: Float[Array, "b s k c"],
    segment_ids: Int[Array, "b s"],
    positions: Int[Array, "b s"],
) -> Float[Array, "b s h c"]:
    """Attention of packed rows by the kernel ``name``, or for ``auto`` by the best one here. Padding's output is free."""
    return KERNELS[best(platform, q.shape[1]) if name == "auto" else name](q, k, v, segment_ids, positions)


def best(platform: str, length: int) -> str:
    if platform == "tpu":
        return "splash"
    return "plain" if length <= _SHORT else "chunked"
