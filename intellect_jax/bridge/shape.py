"""The policy's shape, as every role of a run finds it. Without JAX."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from intellect_jax.bridge.huggingface import load_config
from intellect_jax.bridge.tokenizer import load_tokenizer
from intellect_jax.models.config import ModelConfig


def model_config(config: ConfigDict, run_dir: Path) -> ModelConfig:
    """That of ``model.path``, or of the ``model`` section with the run's tokenizer."""
    if config.model.path:
        return load_config(config.model.path)
    return ModelConfig.from_config(config.model, len(load_tokenizer(run_dir / "tokenizer")))
