"""A real vLLM server, started by the role that the launcher starts, for a policy of the tests."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from intellect_jax.bridge.companions import write_companions
from intellect_jax.bridge.tokenizer import write_character_tokenizer
from intellect_jax.config import to_plain, validate
from intellect_jax.models.config import ModelConfig
from launch import processes
from launch.addresses import free_ports
from tests.policies import SMALL, of_family
from tests.samplers import sampler_config

PYTHON = Path(__file__).parents[2] / ".venv-vllm" / "bin" / "python"
MAX_LEN = 512
# vLLM's attention on a CPU takes heads whose width is a multiple of 32.
_WIDTHS = {"hidden_size": 64, "head_dim": 32, "intermediate_size": 64, "moe_intermediate_size": 32}
POLICIES = {
    "glm4_moe": dataclasses.replace(SMALL, **_WIDTHS, use_qk_norm=True, max_position_embeddings=MAX_LEN),
    "qwen3": of_family("qwen3", **_WIDTHS, max_position_embeddings=MAX_LEN, tie_word_embeddings=True),
}


def write_model(folder: Path, cfg: ModelConfig) -> Path:
    """A Hugging Face folder without weights: config and tokenizer."""
    tokenizer = folder.with_name("tokenizer")
    write_character_tokenizer(tokenizer)
    folder.mkdir()
    write_companions(folder, cfg, None, "float32", tokenizer)
    return folder


def server_config(model: Path, max_len: int = MAX_LEN, **sampler: Any) -> ConfigDict:
    config = sampler_config(max_len=max_len, slots=32, backend="vllm", python=str(PYTHON), platform="cpu", **sampler)
    config.model.path = str(model)
    config.weights.dtype = "float32"
    config.trainer.seq_buckets, config.trainer.microbatch_buckets = (max_len,), (32,)
    config.trainer.max_steps, config.sft.steps, config.sft.data = 0, 1, "made-up.jsonl"  # nothing here trains
    assert not validate(config), validate(config)
    config.launch.start_timeout = 180.0
    config.sampler.urls = (f"http://127.0.0.1:{free_ports(1)[0]}",)
    return config


@contextmanager
def serving(config: ConfigDict, run_dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The sampler's role as a process; what it says is in <run_dir>/logs/sampler-0.log."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.json").write_text(json.dumps(to_plain(config)))
    argv = [sys.executable, "-m", "launch", "sampler", f"--config={run_dir / 'config.json'}", "--index=0"]
    argv += [f"--config.run.root={run_dir.parent}", f"--config.run.name={run_dir.name}"]
    process = processes.start(argv, dict(os.environ), run_dir / "logs" / "sampler-0.log")
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        finally:
            processes.signal_group(process, 9)
