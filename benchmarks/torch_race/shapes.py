"""The shapes that trainer_vs_torch.py knows: a model, a batch, and how each side may run it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from intellect_jax.models.config import ModelConfig


@dataclass(frozen=True)
class Shape:
    """``batch``: microbatches, rows, tokens of a row; ``segment``: mean tokens of a packed sample.

    ``peers``: what PyTorch may try, as arguments of sides.torch_peer: experts implementation, attention implementation,
    torch.compile, and whether the process keeps its memory.
    ``resident``: both sides stay in memory for the whole run; else each round starts them again, one at a time.
    """

    model: ModelConfig
    batch: tuple[int, int, int]
    segment: int
    dtype: str
    peers: tuple[tuple[str, str, bool] | tuple[str, str, bool, bool], ...]
    resident: bool = True
    platform: str = "cpu"
    ours: dict[str, Any] = field(default_factory=dict)  # configuration keys of our trainer
    loss_tolerance: float = 1e-5  # of mean |r A|, which is about 0.8
    norm_tolerance: float = 1e-4  # of the gradient's norm, relative

    @property
    def tokens(self) -> int:
        microbatches, rows, length = self.batch
        return microbatches * rows * length


CPU15M = Shape(
    ModelConfig(
        vocab_size=8192,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        intermediate_size=512,
        moe_intermediate_size=128,
        n_routed_experts=32,
        num_experts_per_tok=4,
        n_shared_experts=1,
        first_k_dense_replace=1,
        max_position_embeddings=512,
    ),
    batch=(1, 4, 512),
    segment=512,
    dtype="float32",
    peers=(
        ("eager", "sdpa", False),
        ("grouped_mm", "sdpa", False),
        ("grouped_mm", "sdpa", True),
        ("grouped_mm", "sdpa", True, True),
    ),
)

TOY = replace(
    CPU15M,
    model=replace(
        CPU15M.model,
        vocab_size=128,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=48,
        moe_intermediate_size=16,
        n_routed_experts=8,
        num_experts_per_tok=2,
    ),
    batch=(2, 2, 64),
    segment=20,
    peers=(("eager", "sdpa", False), ("grouped_mm", "sdpa", False), ("batched_mm", "sdpa", False)),
)

# One dense and one mixture-of-experts layer of GLM-4.5-Air under a quarter of its vocabulary.
GLM_BLOCK = Shape(
    ModelConfig(
        vocab_size=32768,
        hidden_size=4096,
        num_hidden_layers=2,
        num_attention_heads=96,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=10944,
        moe_intermediate_size=1408,
        n_routed_experts=128,
        num_experts_per_tok=8,
        n_shared_experts=1,
        first_k_dense_replace=1,
        rope_theta=1e6,
        max_position_embeddings=131072,
    ),
    batch=(4, 1, 16384),
    segment=4096,
    dtype="bfloat16",
    peers=(("grouped_mm", "sdpa", False), ("grouped_mm", "flex_attention", True), ("grouped_mm", "sdpa", True)),
    resident=False,
    platform="cuda",
    loss_tolerance=5e-3,
    norm_tolerance=5e-2,
)

# The same on a CPU, small enough for a test: bfloat16, several microbatches, packed rows, a side at a time.
GLM_BLOCK_TOY = replace(
    GLM_BLOCK,
    model=replace(TOY.model, num_attention_heads=12, num_key_value_heads=1, rope_theta=1e6),
    batch=(2, 1, 128),
    segment=40,
    peers=(("grouped_mm", "sdpa", False),),
    platform="cpu",
    loss_tolerance=2e-2,
)

SHAPES = {"cpu15m": CPU15M, "toy": TOY, "glm_block": GLM_BLOCK, "glm_block_toy": GLM_BLOCK_TOY}
