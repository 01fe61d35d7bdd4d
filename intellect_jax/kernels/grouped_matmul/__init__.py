"""Grouped matmuls, and the experts of a mixture as their use: layout of the rows, one file per backend, tuning."""

from intellect_jax.kernels.grouped_matmul.experts import LowRank, expert_mlp, expert_mlp_reference
from intellect_jax.kernels.grouped_matmul.layout import fits
from intellect_jax.kernels.grouped_matmul.matmul import grouped_matmul, grouped_matmul_reference

__all__ = ["LowRank", "expert_mlp", "expert_mlp_reference", "fits", "grouped_matmul", "grouped_matmul_reference"]
