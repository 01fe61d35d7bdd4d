"""Policy families: one small file each, with its config reading and its table of tensor names."""

from __future__ import annotations

from types import ModuleType

from intellect_jax.bridge.families import glm4_moe, llama, qwen3, qwen3_moe
from intellect_jax.models.config import ModelConfig

FAMILIES: dict[str, ModuleType] = {family.MODEL_TYPE: family for family in (glm4_moe, qwen3_moe, qwen3, llama)}


def named(model_type: str) -> ModuleType:
    """The family of a Hugging Face ``model_type``; raises ValueError for one that is not supported."""
    if model_type not in FAMILIES:
        raise ValueError(f"model_type {model_type!r} is not supported; supported: {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def of(cfg: ModelConfig) -> ModuleType:
    """The family whose checkpoints hold a policy of this shape."""
    return FAMILIES[cfg.family]
