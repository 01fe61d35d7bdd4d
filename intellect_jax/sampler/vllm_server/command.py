"""Command line and environment of one vLLM server."""

from __future__ import annotations

import json
import os
from pathlib import Path
from urllib.parse import urlsplit

from ml_collections import ConfigDict

from intellect_jax.config import replays_experts
from intellect_jax.sampler.vllm_plugin import BACKEND
from intellect_jax.transport.nccl.library import packaged

EXTENSION = "intellect_jax.sampler.vllm_plugin.extension.Extension"


def argv(config: ConfigDict, url: str, model: Path, moe: bool = True) -> list[str]:
    """The OpenAI-compatible server with its routes for tokens and for weight updates. ``moe``: it has experts."""
    sampler, where = config.sampler, urlsplit(url)
    arguments = {
        "model": str(model),
        "served-model-name": "policy",
        "load-format": "dummy",  # weights come as versions; nothing is sampled before the first
        "dtype": sampler.dtype,
        "host": where.hostname or "127.0.0.1",
        "port": str(where.port or 80),
        "max-model-len": str(sampler.max_len),
        "max-num-seqs": str(sampler.slots),
        "seed": str(config.seed),
        "logprobs-mode": "processed_logprobs",  # at the sampling temperature, as the loss wants them
        "worker-extension-cls": EXTENSION,
        "weight-transfer-config": json.dumps({"backend": BACKEND}),
    }
    if sampler.head_dtype == "float32":
        arguments["hf-overrides"] = json.dumps({"head_dtype": "float32"})  # else bfloat16 rounds logits to 8 bits
    if sampler.platform == "cuda" and sampler.gpu_memory:
        arguments["gpu-memory-utilization"] = str(sampler.gpu_memory)
    flags = ["--enable-scale-out", "--disable-uvicorn-access-log"]
    if moe and replays_experts(config):
        flags.append("--enable-return-routed-experts")
    if sampler.platform == "cpu":
        flags.append("--enforce-eager")  # compiling takes longer than it saves on a CPU
    named = [f"--{name}={value}" for name, value in arguments.items()]
    return [sampler.python, "-m", "vllm.entrypoints.openai.api_server", *named, *flags, *sampler.arguments]


def environment(config: ConfigDict, plugin: Path) -> dict[str, str]:
    """Variables to add to our own."""
    variables = {
        "PYTHONPATH": str(plugin),
        "VLLM_SERVER_DEV_MODE": "1",  # pausing and weight updates
        "VLLM_NO_USAGE_STATS": "1",
        # Below a warning it lists all its routes, and says several lines at every update.
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
        "HF_HUB_OFFLINE": "1",  # the model folder is complete
    }
    if config.weights.transport == "nccl" and packaged():  # both sides must have the same
        variables["VLLM_NCCL_SO_PATH"] = packaged()
    if config.sampler.platform == "cpu":
        variables |= {
            "VLLM_CPU_KVCACHE_SPACE": str(config.sampler.kv_cache_gib),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the trainer lives on these cores too
            "OMP_NUM_THREADS": str(config.launch.threads or 1),  # with two a pause took seconds (vLLM 0.32)
            "TORCH_COMPILE_DISABLE": "1",
        }
    return variables
