"""Model FLOPs of one training step, by arithmetic: what the maths needs, whatever a program does.

The causal half of attention, no recomputation, the experts that a token visits, the head on member tokens. Of a matmul
the backward pass costs twice the forward one; of frozen weights (LoRA) once, since they need no gradient of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

from intellect_jax.models.config import ModelConfig
from intellect_jax.models.lora_shape import Lora


@dataclass(frozen=True)
class Batch:
    """What a step trains on. Every row is full and one segment: the longest context that the config allows."""

    microbatches: int
    rows: int  # of a microbatch
    length: int  # tokens of a row
    members: float = 1.0  # share of the tokens that have a loss

    @property
    def tokens(self) -> int:
        return self.microbatches * self.rows * self.length


def step_flops(cfg: ModelConfig, batch: Batch, lora: Lora | None = None) -> dict[str, float]:
    """FLOPs of a whole step by part: attention_projections, attention_scores, mlp, experts, router, head."""
    weights = forward_per_token(cfg)
    head = weights.pop("head") * batch.members
    times = 2 if lora else 3
    parts = {part: times * flops * batch.tokens for part, flops in weights.items()}
    parts["head"] = times * head * batch.tokens
    keys = (batch.length + 1) / 2  # that a token sees on average
    scores = 2 * 2 * cfg.num_attention_heads * cfg.head_dim * keys
    parts["attention_scores"] = 3 * scores * cfg.num_hidden_layers * batch.tokens
    if lora:
        parts["adapters"] = 3 * _adapters(cfg, lora) * batch.tokens
    return parts


def forward_per_token(cfg: ModelConfig) -> dict[str, float]:
    """FLOPs of one token's forward pass through everything that has weights: 2 for each weight that it meets."""
    d, layers, moe = cfg.hidden_size, cfg.num_hidden_layers, cfg.num_moe_layers
    heads = 2 * cfg.num_attention_heads + 2 * cfg.num_key_value_heads  # query and output, key and value
    visited = cfg.num_experts_per_tok + cfg.n_shared_experts
    return {
        "attention_projections": 2.0 * layers * d * heads * cfg.head_dim,
        "mlp": 2.0 * cfg.num_dense_layers * 3 * d * cfg.intermediate_size,
        "experts": 2.0 * moe * visited * 3 * d * cfg.moe_intermediate_size,
        "router": 2.0 * moe * d * cfg.n_routed_experts,
        "head": 2.0 * d * cfg.vocab_size,
    }


def _adapters(cfg: ModelConfig, lora: Lora) -> float:
    """Forward FLOPs of one token through the factors: rank x (inputs + outputs) of every adapted map it meets."""
    d, f, width = cfg.hidden_size, cfg.intermediate_size, cfg.head_dim
    q, kv = cfg.num_attention_heads * width, cfg.num_key_value_heads * width
    shared = cfg.n_shared_experts * cfg.moe_intermediate_size
    per_target = {
        "attention": cfg.num_hidden_layers * (2 * (d + q) + 2 * (d + kv)),
        "dense": 3 * (cfg.num_dense_layers * (d + f) + (cfg.num_moe_layers * (d + shared) if shared else 0)),
        "experts": cfg.num_moe_layers * cfg.num_experts_per_tok * (2 * d + 3 * cfg.moe_intermediate_size),
    }
    return 2.0 * lora.rank * sum(per_target[target] for target in lora.targets)
