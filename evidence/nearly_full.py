"""Two recipes that nearly fill one GPU, each by something else, to hold `launch plan`'s memory against the device's.

    python -m launch plan --config=evidence/nearly_full.py:experts-h200 --devices=1 --target=h200
    python -m launch bench --config=evidence/nearly_full.py:experts-h200

``experts``: weights and optimizer of GLM-4.5-Air's layers, under a part of its vocabulary. ``rows``: activations of a
dense model over long rows. Then the GPU, or ``tiny``, for a CPU.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from intellect_jax.config import default_config, env
from intellect_jax.errors import UserError

GLM = {
    "hidden_size": 4096,
    "num_attention_heads": 96,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_routed_experts": 128,
    "num_experts_per_tok": 8,
}
DENSE = {"family": "qwen3", "hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
TINY = {"vocab_size": 256, "hidden_size": 64, "head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2}

# Of the model, then rows and tokens of a microbatch.
SIZES: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "experts-h200": ({**GLM, "vocab_size": 32768, "num_hidden_layers": 3}, (1, 10240)),
    "experts-h100": ({**GLM, "vocab_size": 65536, "num_hidden_layers": 2}, (1, 12288)),
    "rows-h200": ({**DENSE, "vocab_size": 65536, "num_hidden_layers": 9, "intermediate_size": 6144}, (1, 65536)),
    "rows-h100": ({**DENSE, "vocab_size": 65536, "num_hidden_layers": 9, "intermediate_size": 6144}, (1, 32768)),
    "experts-tiny": ({**TINY, "num_hidden_layers": 2, "intermediate_size": 64, "n_routed_experts": 8}, (1, 128)),
    "rows-tiny": ({**TINY, "family": "qwen3", "num_hidden_layers": 2, "intermediate_size": 64}, (1, 256)),
}


def get_config(arg: str | None = None) -> ConfigDict:
    if arg not in SIZES:
        raise UserError(f"{arg}: must be one of {', '.join(SIZES)}")
    model, (rows, length) = SIZES[arg]
    tiny = arg.endswith("-tiny")
    config = default_config()
    config.envs = (env("reverse_text"),)
    config.model.update(model)
    config.model.attention_bias = "family" not in model
    config.model.max_position_embeddings = length
    config.model.compute_dtype = "float32" if tiny else "bfloat16"
    config.weights.deltas = False  # `bench` publishes nothing
    trainer = config.trainer
    trainer.platform = "cpu" if tiny else "cuda"
    trainer.gpu_memory = 0.0 if tiny else 0.95
    trainer.rows, trainer.seq_buckets, trainer.microbatch_buckets = rows, (length,), (2,)
    trainer.remat = "none"
    config.orchestrator.batch_size = config.orchestrator.group_size = 2  # of rollouts that one row holds
    config.bench.warmup_steps, config.bench.steps = 1, 2
    return config
