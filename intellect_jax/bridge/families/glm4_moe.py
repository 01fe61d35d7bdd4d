"""glm4_moe: GLM-4.5, GLM-4.5-Air, INTELLECT-3."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from intellect_jax.bridge.families import table
from intellect_jax.bridge.families.hf_config import HFConfig
from intellect_jax.bridge.families.table import At, Entry
from intellect_jax.models.config import ModelConfig

MODEL_TYPE = "glm4_moe"
ARCHITECTURE = "Glm4MoeForCausalLM"

# Keys that a config file may leave out, with the value that transformers then assumes.
DEFAULTS: dict[str, Any] = {
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "attention_bias": False,
    "use_qk_norm": False,
    "partial_rotary_factor": 0.5,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "max_position_embeddings": 131072,
    "initializer_range": 0.02,
}


def entries(cfg: ModelConfig) -> Iterator[Entry]:
    """Every tensor of a checkpoint."""
    yield from table.embeddings(cfg)
    for is_moe, layer in table.layers(cfg):
        yield from table.attention(layer, cfg)
        if is_moe:
            yield from _moe(layer.below("mlp.", "moe"), cfg)
        else:
            yield from table.mlp(layer.below("mlp.", "mlp"), cfg.hidden_size, cfg.intermediate_size)


def _moe(at: At, cfg: ModelConfig) -> Iterator[Entry]:
    experts = (cfg.n_routed_experts,)
    yield at.linear("gate.weight", ("router", "kernel"), (cfg.hidden_size,), experts)
    yield at.vector("gate.e_score_correction_bias", ("router", "bias"), experts, float32=True)
    yield from table.experts(at, cfg)
    if cfg.n_shared_experts:
        shared = at.below("shared_experts.", "shared")
        yield from table.mlp(shared, cfg.hidden_size, cfg.moe_intermediate_size * cfg.n_shared_experts)


def from_hf_config(config: HFConfig) -> ModelConfig:
    """Reads config.json; raises ValueError naming what is missing or not supported."""
    config.require("hidden_act", "silu")
    config.require("attention_dropout", 0.0)
    return config.read(DEFAULTS)


def to_hf_config(cfg: ModelConfig) -> dict[str, Any]:
    """The keys of config.json that only this family has."""
    return {"num_nextn_predict_layers": 0}  # the multi-token-prediction layer is not exported
