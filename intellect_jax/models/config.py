"""The shape of a policy, in Hugging Face's names."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ml_collections import ConfigDict


@dataclass(frozen=True)
class ModelConfig:
    """Hashable description of a decoder-only transformer; see ``config.model`` for the meaning of each field."""

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

    @property
    def num_dense_layers(self) -> int:
        return min(self.first_k_dense_replace, self.num_hidden_layers)

    @property
    def num_moe_layers(self) -> int:
        return self.num_hidden_layers - self.num_dense_layers

    @property
    def rotary_dim(self) -> int:
        """How many leading entries of each head RoPE rotates."""
        return int(self.head_dim * self.partial_rotary_factor)

    @classmethod
    def from_config(cls, model: ConfigDict, vocab_size: int) -> ModelConfig:
        """From the ``model`` section; ``vocab_size`` is used where the section leaves it to the tokenizer (0)."""
        values = {f.name: model[f.name] for f in fields(cls)}
        values["vocab_size"] = model.vocab_size or vocab_size
        return cls(**values)
