"""Rotary position embedding over the leading part of each head (Su et al., 2021; half-split layout as in GPT-NeoX)."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from intellect_jax.models.config import ModelConfig
from intellect_jax.models.rope_scaling import frequencies


def rotation(positions: Int[Array, "b s"], cfg: ModelConfig) -> tuple[Array, Array]:
    """cos and sin, each float32 [B, S, rotary_dim / 2]."""
    radians, factor = frequencies(cfg.rotary_dim, cfg.rope_theta, cfg.rope_scaling)
    angles = positions[..., None].astype(jnp.float32) * radians
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate(x: Float[Array, "b s h c"], cos: Array, sin: Array) -> Float[Array, "b s h c"]:
    """Rotates the pairs (i, i + rotary_dim/2) of the first rotary_dim entries; the rest passes through."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos[:, :, None, :].astype(x.dtype), sin[:, :, None, :].astype(x.dtype)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)
