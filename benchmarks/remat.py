"""What each remat policy costs and saves: memory and work of the compiled train step, on one CPU device.

    python benchmarks/remat.py [--length=1024] [--layers=8] [--out=FILE]

Compiles the whole step (one microbatch of four rows, float32) of a small mixture of experts under each policy without
running it. ``temporary``: what the compiler sets aside beside parameters, moments and batch. ``matmuls``: FLOPs of all
matrix products, loops multiplied by their trip counts. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from intellect_jax.config import default_config
from intellect_jax.models.config import ModelConfig
from intellect_jax.models.remat import NAMES
from intellect_jax.parallel.mesh import make_mesh
from intellect_jax.trainer import setup
from launch.plan import cost, hlo

MIB, GIGA = 2**20, 1e9


def measure(remat: str, length: int, layers: int) -> dict[str, float]:
    config = default_config()
    config.model.update(hidden_size=256, intermediate_size=704, num_hidden_layers=layers, vocab_size=512)
    config.model.compute_dtype = "float32"
    config.trainer.update(rows=4, remat=remat, attention="chunked")
    cfg, mesh = ModelConfig.from_config(config.model, 512), make_mesh(config.parallel, jax.devices()[:1])
    optimizer, state = setup.optimizer_and_state(config, cfg, mesh)
    batch, rate = setup.batch_specs(config, cfg, mesh, (1, 4, length)), jax.ShapeDtypeStruct((), jnp.float32)
    program = setup.jit_step(config, cfg, mesh, optimizer, state).lower(state, batch, rate, None).compile()
    sizes, counted = program.memory_analysis(), cost.count(hlo.parse(program.as_text()))
    gradients = 4 * sum(prod(leaf.shape) for leaf in jax.tree.leaves(state.params))
    return {
        "temporary_mib": round(sizes.temp_size_in_bytes / MIB, 1),
        "beside_gradients_mib": round((sizes.temp_size_in_bytes - gradients) / MIB, 1),
        "matmuls_gflop": round(sum(counted.flops.values()) / GIGA, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result: dict[str, Any] = {"jax": jax.__version__, "machine": platform.machine(), **vars(options), "policies": {}}
    result.pop("out")
    for remat in ("none", *sorted(NAMES, key=lambda name: -len(NAMES[name]))):
        found = result["policies"][remat] = measure(remat, options.length, options.layers)
        print(f"{remat:10} " + "  ".join(f"{name} {value:10}" for name, value in found.items()), flush=True)
    line = json.dumps(result)
    if options.out:
        options.out.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
