"""The shape of a policy, in Hugging Face's names."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ml_collections import ConfigDict

from intellect_jax.models.rope_scaling import RopeScaling

_DENSE: dict[str, Any] = {
    "router": "none",
    "moe_intermediate_size": 0,
    "n_routed_experts": 0,
    "num_experts_per_tok": 0,
    "n_shared_experts": 0,
    "first_k_dense_replace": 0,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
    "partial_rotary_factor": 1.0,
    "attention_output_bias": True,
}

# What an architecture fixes, whatever a checkpoint's config.json or the ``model`` section says.
TRAITS: dict[str, dict[str, Any]] = {
    "glm4_moe": {"router": "sigmoid", "attention_output_bias": False},
    "qwen3_moe": {
        "router": "softmax",
        "use_qk_norm": True,
        "n_shared_experts": 0,
        "first_k_dense_replace": 0,
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 1.0,
        "partial_rotary_factor": 1.0,
        "attention_output_bias": True,
    },
    "qwen3": {**_DENSE, "use_qk_norm": True},
    "llama": {**_DENSE, "use_qk_norm": False},
}


@dataclass(frozen=True)
class ModelConfig:
    """Hashable description of a decoder-only transformer; see ``config.model`` for the meaning of most fields.

    ``router``: sigmoid scores with a selection bias, softmax scores, or none (every layer is dense).
    ``attention_output_bias``: where there is ``attention_bias``, the output projection has one too.
    Layer i has a dense MLP when i < ``first_k_dense_replace``, when it is one of ``mlp_only_layers``, or when i + 1 is
    not a multiple of ``decoder_sparse_step``; otherwise it is a mixture of experts.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    moe_intermediate_size: int
    n_routed_experts: int
    num_experts_per_tok: int
    n_shared_experts: int
    first_k_dense_replace: int
    n_group: int = 1
    topk_group: int = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    attention_bias: bool = True
    use_qk_norm: bool = False
    partial_rotary_factor: float = 0.5
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 512
    initializer_range: float = 0.02
    family: str = "glm4_moe"
    router: str = "sigmoid"
    attention_output_bias: bool = False
    decoder_sparse_step: int = 1
    mlp_only_layers: tuple[int, ...] = ()
    rope_scaling: RopeScaling | None = None

    @property
    def moe_pattern(self) -> tuple[bool, ...]:
        """For every layer in order: is it a mixture of experts."""
        return tuple(self._is_moe(i) for i in range(self.num_hidden_layers))

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Which layers are mixtures of experts."""
        return tuple(layer for layer, moe in enumerate(self.moe_pattern) if moe)

    def _is_moe(self, layer: int) -> bool:
        if self.router == "none" or layer < self.first_k_dense_replace or layer in self.mlp_only_layers:
            return False
        return (layer + 1) % self.decoder_sparse_step == 0

    @property
    def num_dense_layers(self) -> int:
        return self.num_hidden_layers - self.num_moe_layers

    @property
    def num_moe_layers(self) -> int:
        return sum(self.moe_pattern)

    @property
    def rotary_dim(self) -> int:
        """How many leading entries of each head RoPE rotates."""
        return int(self.head_dim * self.partial_rotary_factor)

    @classmethod
    def from_config(cls, model: ConfigDict, vocab_size: int) -> ModelConfig:
        """From the ``model`` section; ``vocab_size`` is used where the section leaves it to the tokenizer (0)."""
        values = {f.name: model[f.name] for f in fields(cls) if f.name in model}
        values["vocab_size"] = model.vocab_size or vocab_size
        return cls(**{**values, **TRAITS[model.family]})
