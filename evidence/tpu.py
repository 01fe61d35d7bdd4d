"""Do the train step and the JAX engine's programs compile for TPUs, none being here, and what do they take of one?

    python -m evidence.tpu

In an environment with libtpu (`make plan-tpu`). The step is that of INTELLECT-3's recipe at GLM-4.5-Air's size on 128
chips; the engine serves Qwen3-30B-A3B from one chip. Results go to evidence/results/tpu.json as they come; what is
there already, of the same recipe and versions, is not compiled again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from intellect_jax.config import default_config, to_plain
from intellect_jax.files import write_json
from launch.plan import memory
from launch.plan.compile import Request, compile_step, environment
from launch.plan.targets import TARGETS

RESULTS = Path(__file__).parent / "results" / "tpu.json"
TARGET, CHIPS = "v5p", 128


def step_config() -> ConfigDict:
    """GLM-4.5-Air, rows spread over fsdp and expert."""
    config = default_config()
    config.model.update(GLM45_AIR)
    config.parallel.fsdp, config.parallel.expert = 16, 8
    trainer = config.trainer
    trainer.rows, trainer.seq_buckets, trainer.microbatch_buckets, trainer.remat = CHIPS, (2048,), (4,), "full"
    return config


GLM45_AIR = {
    "vocab_size": 151552,
    "hidden_size": 4096,
    "num_hidden_layers": 46,
    "num_attention_heads": 96,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_routed_experts": 128,
    "num_experts_per_tok": 8,
    "rope_theta": 1e6,
    "max_position_embeddings": 131072,
}


def engine_config() -> ConfigDict:
    """Qwen3-30B-A3B, 64 requests of up to 2048 tokens."""
    config = default_config()
    config.model.update(QWEN3_30B_A3B)
    sampler = config.sampler
    sampler.slots, sampler.max_len, sampler.prefill_buckets, sampler.prefill_rows = 64, 2048, (2048,), 4
    sampler.deterministic = True  # one size of each program
    return config


QWEN3_30B_A3B = {
    "family": "qwen3_moe",
    "vocab_size": 151936,
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "n_routed_experts": 128,
    "num_experts_per_tok": 8,
    "attention_bias": False,
    "rope_theta": 1e6,
    "max_position_embeddings": 40960,
}


def train_step() -> dict[str, Any]:
    """Compiled in a process of its own; bytes of one chip."""
    compiled = compile_step(Request(to_plain(step_config()), 0, TARGET, CHIPS, "tpu"), timeout=1800)
    if compiled.refused:
        raise RuntimeError(compiled.refused)
    return {
        "chips": CHIPS,
        "mesh": compiled.mesh,
        "batch": compiled.batch,
        "memory": memory.by_kind(compiled),
        "fits": memory.fits(TARGETS[TARGET], memory.by_kind(compiled)),
        "traced_flops": compiled.traced_flops / CHIPS,
        "unknown_loops": compiled.unknown_loops,
        "unknown_kernels": compiled.kernels,
        "seconds": round(compiled.trace_seconds + compiled.compile_seconds, 1),
        "peak_rss": compiled.peak_rss,
    }


def engine(program: str) -> dict[str, Any]:
    """``prefill`` or ``decode`` for one chip."""
    os.environ |= environment("tpu", 1)
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    from intellect_jax.models.config import ModelConfig
    from intellect_jax.models.transformer import abstract_params
    from intellect_jax.sampler.batches import empty_batch
    from intellect_jax.sampler.programs import Programs
    from intellect_jax.sampler.shapes import Shapes
    from intellect_jax.sampler.slots import idle_inputs

    config = engine_config()
    programs = Programs(ModelConfig.from_config(config.model, 0), Shapes.from_config(config.sampler), "tpu")
    chip = topologies.get_topology_desc(platform="tpu", topology_name=f"{TARGET}:2x2x1").devices[0]

    def there(leaf: Any, dtype: Any = None) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype, sharding=SingleDeviceSharding(chip))

    params = jax.tree.map(lambda leaf: there(leaf, jnp.bfloat16), abstract_params(programs.model))
    cache = jax.tree.map(there, jax.eval_shape(programs.new_cache))
    shapes = programs.shapes
    rows, length, slots = shapes.row_buckets[-1], shapes.length_buckets[-1], shapes.slots
    tables = np.zeros((slots, shapes.width), np.int32)
    inputs = (empty_batch(rows, length, shapes.width),) if program == "prefill" else (idle_inputs(slots), tables)
    call, start = getattr(programs, program), time.monotonic()
    compiled = (
        call.func.trace(*call.args, params, cache, *jax.tree.map(there, inputs))
        .lower(lowering_platforms=("tpu",))
        .compile()
    )
    sizes = compiled.memory_analysis()
    return {
        "chips": 1,
        "inputs": [rows, length] if program == "prefill" else [slots, shapes.max_len],
        "memory": {
            "weights": float(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))),
            "cache": float(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))),
            "temporaries": float(sizes.temp_size_in_bytes),
        },
        "seconds": round(time.monotonic() - start, 1),
    }


PROGRAMS: dict[str, tuple[Callable[[], dict[str, Any]], Callable[[], ConfigDict]]] = {
    "train_step": (train_step, step_config),
    "engine_prefill": (lambda: engine("prefill"), engine_config),
    "engine_decode": (lambda: engine("decode"), engine_config),
}


def main() -> None:
    from importlib.metadata import version

    versions = {name: version(name) for name in ("jax", "libtpu")}
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name, (compile_program, config) in PROGRAMS.items():
        recipe = hashlib.sha256(config().to_json().encode()).hexdigest()[:12]
        if (results.get(name, {}).get("recipe"), results.get(name, {}).get("versions")) == (recipe, versions):
            print(f"{name}: already there", flush=True)
            continue
        results[name] = {"target": TARGET, "recipe": recipe, "versions": versions, **compile_program()}
        write_json(RESULTS, results)
        print(name, json.dumps(results[name], indent=2), flush=True)


if __name__ == "__main__":
    main()
