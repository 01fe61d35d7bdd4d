"""qwen3_moe: Qwen3-30B-A3B, Qwen3-235B-A22B (HF: Qwen3MoeForCausalLM)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from intellect_jax.bridge.families import hf_config, table
from intellect_jax.bridge.families.hf_config import HFConfig
from intellect_jax.bridge.families.table import Entry
from intellect_jax.models.config import ModelConfig

MODEL_TYPE = "qwen3_moe"
ARCHITECTURE = "Qwen3MoeForCausalLM"

# Fields that only this family's config files hold → their key.
KEYS = {
    "moe_intermediate_size": "moe_intermediate_size",
    "n_routed_experts": "num_experts",
    "num_experts_per_tok": "num_experts_per_tok",
    "norm_topk_prob": "norm_topk_prob",
    "decoder_sparse_step": "decoder_sparse_step",
    "mlp_only_layers": "mlp_only_layers",
}

# Fields that a config file may leave out, with the value that transformers then assumes.
DEFAULTS: dict[str, Any] = {
    **hf_config.DEFAULTS,
    "norm_topk_prob": False,
    "decoder_sparse_step": 1,
    "mlp_only_layers": (),
    "max_position_embeddings": 32768,
}


def entries(cfg: ModelConfig) -> Iterator[Entry]:
    """Every tensor of a checkpoint."""
    return table.decoder(cfg, table.routed_experts)


def from_hf_config(config: HFConfig) -> ModelConfig:
    """Reads config.json; raises ValueError naming what is missing or not supported."""
    config.require_full_attention()
    config.require("partial_rotary_factor", 1.0)
    config.rename("num_local_experts", "num_experts")  # as transformers 5 writes it
    cfg = config.read(MODEL_TYPE, KEYS, DEFAULTS)
    return replace(cfg, mlp_only_layers=tuple(sorted(cfg.mlp_only_layers)))


def to_hf_config(cfg: ModelConfig) -> dict[str, Any]:
    """The keys of config.json that only this family has."""
    return {**hf_config.specific(cfg, KEYS), "use_sliding_window": False}
