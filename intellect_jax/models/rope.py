"""Rotary position embedding over the leading part of each head (Su et al., 2021; half-split layout as in GPT-NeoX)."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rotation(positions: Int[Array, "b s"], rotary_dim: int, theta: float) -> tuple[Array, Array]:
    """cos and sin, each float32 [B, S, rotary_dim / 2]."""
    exponents = jnp.arange(0, rotary_dim, 2, dtype=jnp.float32) / rotary_dim
    angles = positions[..., None].astype(jnp.float32) * (1.0 / theta**exponents)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "b s h c"], cos: Array, sin: Array) -> Float[Array, "b s h c"]:
    """Rotates the pairs (i, i + rotary_dim/2) of the first rotary_dim entries; the rest passes through."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos[:, :, None, :].astype(x.dtype), sin[:, :, None, :].astype(x.dtype)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)
