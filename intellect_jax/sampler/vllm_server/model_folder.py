"""What a vLLM server is started from: a model folder without weights, and the way to our plug-in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ml_collections import ConfigDict

import intellect_jax
from intellect_jax.bridge import plan
from intellect_jax.bridge.companions import write_companions
from intellect_jax.bridge.shape import model_config
from intellect_jax.bridge.source import Source, find_folder
from intellect_jax.files import write_text
from intellect_jax.models.config import ModelConfig
from intellect_jax.sampler.vllm_plugin import EXPECTED
from intellect_jax.transport.safetensors_file import dtype_name


def make_model_folder(config: ConfigDict, run_dir: Path, target: Path) -> ModelConfig:
    """Config, tokenizer and the list of tensors that every version must consist of; returns the policy's shape."""
    tokenizer = run_dir / "tokenizer"
    source = Source(find_folder(config.model.path)) if config.model.path else None
    cfg = model_config(config, run_dir)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    write_companions(target, cfg, source, config.sampler.dtype, tokenizer)
    tensors = plan.outputs(cfg, config.weights.dtype, None)
    expected = {tensor.name: [dtype_name(tensor.dtype), list(tensor.shape)] for tensor in tensors}
    write_text(target / EXPECTED, json.dumps(expected))
    return cfg


def link_plugin(target: Path) -> Path:
    """A folder for PYTHONPATH with our package alone: beside it nothing of our environment gets into vLLM's."""
    package = Path(intellect_jax.__file__ or "").parent
    target.mkdir(parents=True, exist_ok=True)
    link = target / package.name
    link.unlink(missing_ok=True)
    link.symlink_to(package, target_is_directory=True)
    return target
