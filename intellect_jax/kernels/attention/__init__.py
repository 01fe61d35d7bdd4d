"""Grouped-query attention over packed rows, one file for each way to compute it, and over a key/value cache."""

from intellect_jax.kernels.attention.plain import attend, packed_attention

__all__ = ["attend", "packed_attention"]
