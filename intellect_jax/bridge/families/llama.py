"""llama: Llama 3.x, SmolLM2 (HF: LlamaForCausalLM)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from intellect_jax.bridge.families import hf_config, table
from intellect_jax.bridge.families.hf_config import HFConfig
from intellect_jax.bridge.families.table import Entry
from intellect_jax.models.config import ModelConfig

MODEL_TYPE = "llama"
ARCHITECTURE = "LlamaForCausalLM"

# Fields that a config file may leave out, with the value that transformers then assumes.
DEFAULTS: dict[str, Any] = {**hf_config.DEFAULTS, "max_position_embeddings": 2048}


def entries(cfg: ModelConfig) -> Iterator[Entry]:
    """Every tensor of a checkpoint."""
    return table.decoder(cfg)


def from_hf_config(config: HFConfig) -> ModelConfig:
    """Reads config.json; raises ValueError naming what is missing or not supported."""
    config.require("mlp_bias", False)
    config.require("partial_rotary_factor", 1.0)
    heads = config.values.get("num_attention_heads")  # Llama 1 wrote no num_key_value_heads
    return config.read(MODEL_TYPE, {}, {**DEFAULTS, **({"num_key_value_heads": heads} if heads else {})})


def to_hf_config(cfg: ModelConfig) -> dict[str, Any]:
    """The keys of config.json that only this family has."""
    return {"mlp_bias": False}
