"""qwen3: the dense Qwen3 models (HF: Qwen3ForCausalLM)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from intellect_jax.bridge.families import hf_config, table
from intellect_jax.bridge.families.hf_config import HFConfig
from intellect_jax.bridge.families.table import Entry
from intellect_jax.models.config import ModelConfig

MODEL_TYPE = "qwen3"
ARCHITECTURE = "Qwen3ForCausalLM"

# Fields that a config file may leave out, with the value that transformers then assumes.
DEFAULTS: dict[str, Any] = {**hf_config.DEFAULTS, "head_dim": 128, "max_position_embeddings": 32768}


def entries(cfg: ModelConfig) -> Iterator[Entry]:
    """Every tensor of a checkpoint."""
    return table.decoder(cfg)


def from_hf_config(config: HFConfig) -> ModelConfig:
    """Reads config.json; raises ValueError naming what is missing or not supported."""
    config.require_full_attention()
    config.require("partial_rotary_factor", 1.0)
    return config.read(MODEL_TYPE, {}, DEFAULTS)


def to_hf_config(cfg: ModelConfig) -> dict[str, Any]:
    """The keys of config.json that only this family has."""
    return {"use_sliding_window": False}
