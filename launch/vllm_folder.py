"""What a vLLM server that nobody here starts is started from: a folder, and the command line."""

from __future__ import annotations

import shlex
from pathlib import Path

from ml_collections import ConfigDict

from intellect_jax.sampler.vllm_server import command
from intellect_jax.sampler.vllm_server.model_folder import link_plugin, make_model_folder
from launch.preparation import prepare_tokenizer

URL = "http://0.0.0.0:8000"  # where it listens, unless sampler.urls has an address


def write(config: ConfigDict, out: Path) -> str:
    """Writes the policy's folder and the way to our plug-in under ``out``; returns the command, for a shell."""
    prepare_tokenizer(config, out)
    cfg = make_model_folder(config, out, out / "model")
    variables = command.environment(config, link_plugin(out / "plugin"))
    argv = command.argv(config, next(iter(config.sampler.urls), URL), out / "model", moe=cfg.num_moe_layers > 0)
    words = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    return " \\\n  ".join([*words, shlex.join(argv[:3]), *map(shlex.quote, argv[3:])])
