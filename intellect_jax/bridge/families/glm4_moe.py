"""glm4_moe: GLM-4.5, GLM-4.5-Air, INTELLECT-3 (HF: Glm4MoeForCausalLM)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from intellect_jax.bridge.families import hf_config, table
from intellect_jax.bridge.families.hf_config import HFConfig
from intellect_jax.bridge.families.table import At, Entry
from intellect_jax.models.config import ModelConfig

MODEL_TYPE = "glm4_moe"
ARCHITECTURE = "Glm4MoeForCausalLM"

# Fields that only this family's config files hold → their key.
KEYS = {
    name: name
    for name in (
        "moe_intermediate_size",
        "n_routed_experts",
        "num_experts_per_tok",
        "n_shared_experts",
        "first_k_dense_replace",
        "n_group",
        "topk_group",
        "norm_topk_prob",
        "routed_scaling_factor",
        "use_qk_norm",
        "partial_rotary_factor",
    )
}

# Keys that a config file may leave out, with the value that transformers then assumes.
DEFAULTS: dict[str, Any] = {
    **hf_config.DEFAULTS,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "use_qk_norm": False,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
}


def entries(cfg: ModelConfig) -> Iterator[Entry]:
    """Every tensor of a checkpoint."""
    return table.decoder(cfg, _moe)


def _moe(at: At, cfg: ModelConfig) -> Iterator[Entry]:
    yield from table.routed_experts(at, cfg)
    bias = (cfg.n_routed_experts,)
    yield at.vector("gate.e_score_correction_bias", ("router", "bias"), bias, float32=True)
    if cfg.n_shared_experts:
        shared = at.below("shared_experts.", "shared")
        yield from table.mlp(shared, cfg.hidden_size, cfg.moe_intermediate_size * cfg.n_shared_experts)


def from_hf_config(config: HFConfig) -> ModelConfig:
    """Reads config.json; raises ValueError naming what is missing or not supported."""
    return config.read(MODEL_TYPE, KEYS, DEFAULTS)


def to_hf_config(cfg: ModelConfig) -> dict[str, Any]:
    """The keys of config.json that only this family has."""
    # The multi-token-prediction layer is not exported.
    return {**hf_config.specific(cfg, KEYS), "num_nextn_predict_layers": 0}
