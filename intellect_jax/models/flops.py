"""Model FLOPs: what a step cannot avoid. Matrix products only, a multiply-add as two; arithmetic without JAX.

The causal half of attention within each segment, the experts that a token visits, the head where a log-probability is
asked for; no padding, no recomputation, no optimizer (as in PaLM, arXiv 2204.02311, appendix B, but with only the half
of the attention that causality leaves). Model FLOPs utilisation is these over seconds and a device's peak rate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from intellect_jax.models.config import ModelConfig

FORWARD_AND_BACKWARD = 3  # a product's two gradients cost as much as the product, each
WEIGHTS_FROZEN = (
    2  # with LoRA: gradients of activations only; the adapters' own products, rank / width of it, are left out
)


@dataclass(frozen=True)
class Work:
    """What passes through the model, whatever its shape."""

    tokens: int  # padding is none
    pairs: int  # (query, key) that attention must look at
    scored: int  # tokens whose log-probability is asked for

    @classmethod
    def of_lengths(cls, lengths: Iterable[int], scored: int | None = None) -> Work:
        """Segments of these lengths, in tokens; all tokens but each first are scored unless said."""
        sizes = [int(length) for length in lengths]
        pairs = sum(length * (length + 1) // 2 for length in sizes)
        return cls(sum(sizes), pairs, sum(sizes) - len(sizes) if scored is None else scored)

    @classmethod
    def of_batch(cls, arrays: Mapping[str, np.ndarray]) -> Work:
        """The streams ``segment_ids``, ``positions`` and ``loss_mask`` of a packed batch (see types.PackedBatch)."""
        real = arrays["segment_ids"] > 0
        pairs = int(arrays["positions"][real].sum(dtype=np.int64)) + int(real.sum())
        return cls(int(real.sum()), pairs, int(arrays["loss_mask"].sum()))


def forward_flops(cfg: ModelConfig, work: Work) -> dict[str, int]:
    """FLOPs of the forward pass by part; all layers of a part together."""
    d, h, kv, c = cfg.hidden_size, cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim
    layers, dense, moe = cfg.num_hidden_layers, cfg.num_dense_layers, cfg.num_moe_layers
    expert = 6 * d * cfg.moe_intermediate_size  # gate, up and down
    return {
        "projections": layers * work.tokens * 2 * d * c * (2 * h + 2 * kv),
        "attention": layers * work.pairs * 4 * h * c,
        "dense_mlp": dense * work.tokens * 6 * d * cfg.intermediate_size,
        "router": moe * work.tokens * 2 * d * cfg.n_routed_experts,
        "shared_experts": moe * work.tokens * expert * cfg.n_shared_experts,
        "routed_experts": moe * work.tokens * expert * cfg.num_experts_per_tok,
        "head": work.scored * 2 * d * cfg.vocab_size,
    }


def step_flops(cfg: ModelConfig, work: Work, *, frozen: bool = False) -> int:
    """FLOPs of a training step; ``frozen``: the weights have no gradients, only adapters train."""
    parts = forward_flops(cfg, work)
    attention = parts.pop("attention")  # has no weights
    return FORWARD_AND_BACKWARD * attention + (WEIGHTS_FROZEN if frozen else FORWARD_AND_BACKWARD) * sum(parts.values())
