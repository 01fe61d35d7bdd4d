"""Loss and gradients of one batch on many meshes of fake devices, against one device; run by test_equality.py.

python equality_run.py CASE…: each is a name of CASES; prints one JSON line a case: {case, worst, tensor, loss}.
"""

import json
import sys
from dataclasses import replace
from functools import lru_cache

import jax
import numpy as np
from ml_collections import ConfigDict

from intellect_jax.config import default_config
from intellect_jax.data.packing import pack
from intellect_jax.models.transformer import param_axes
from intellect_jax.parallel.mesh import make_mesh, tree_shardings
from intellect_jax.parallel.ops import make_ops
from intellect_jax.trainer.setup import batch_specs
from intellect_jax.trainer.step import StepOptions, accumulate
from intellect_jax.types import PackedBatch, Sample
from tests.policies import SMALL, quick_jit, random_params

# One dense layer and one mixture of experts. Renormalised weights of one expert alone would not depend on the router,
# and a gradient that is 0 but for rounding has no relative error.
CFG = replace(SMALL, num_key_value_heads=4, num_hidden_layers=2, norm_topk_prob=False)
LENGTH, ROWS = 32, 8
RING, RAGGED = {"expert_strategy": "ring"}, {"expert_strategy": "ragged"}
ULYSSES = {"context_strategy": "ulysses"}

# name: (mesh and strategies, routing)
CASES = {
    "data": ({"data": 8}, "own"),
    "fsdp": ({"fsdp": 8}, "own"),
    "tensor": ({"data": 2, "tensor": 4}, "own"),
    "expert_ring": ({"expert": 8, **RING}, "own"),
    "expert_ragged": ({"expert": 8, **RAGGED}, "own"),
    "context_ring": ({"context": 8}, "own"),
    "context_ulysses": ({"data": 2, "context": 4, **ULYSSES}, "own"),
    "data_fsdp": ({"data": 2, "fsdp": 4}, "own"),
    "expert_fsdp_ring": ({"expert": 4, "fsdp": 2, **RING}, "uneven"),
    "expert_fsdp_ragged": ({"expert": 2, "fsdp": 4, **RAGGED}, "uneven"),
    "context_fsdp": ({"context": 4, "fsdp": 2}, "uneven"),
    "tensor_fsdp": ({"tensor": 2, "fsdp": 4}, "one"),
    "expert_context": ({"expert": 2, "context": 4, **RING}, "one"),
    "expert_context_ragged": ({"expert": 4, "context": 2, **RAGGED, **ULYSSES}, "one"),
    "expert_tensor": ({"expert": 4, "tensor": 2, **RAGGED}, "one"),
    "expert_ragged_one": ({"expert": 8, **RAGGED}, "one"),
    "expert_ring_one": ({"expert": 8, **RING}, "one"),
    "all": ({"fsdp": 2, "context": 2, "tensor": 2, **ULYSSES}, "uneven"),
}


def make_batch(routing: str) -> PackedBatch:
    """Packed rows of samples of many lengths. Expert choices are given: spread ("own"), skewed with four of eight
    experts that nobody chooses ("uneven"), or all on the first expert ("one")."""
    rng = np.random.default_rng(0)
    samples = [_sample(rng, int(length), routing) for length in rng.integers(3, LENGTH, 26)]
    routed = (CFG.num_moe_layers, CFG.num_experts_per_tok)
    return pack(samples, 1, rows=ROWS, seq_buckets=(LENGTH,), microbatch_buckets=(3,), routed_shape=routed,
                current_version=0)  # fmt: skip


def _sample(rng: np.random.Generator, length: int, routing: str) -> Sample:
    tokens = rng.integers(0, CFG.vocab_size, length).astype(np.int32)
    mask = np.arange(length) > 1
    pool, odds = {"own": (8, None), "uneven": (4, (0.7, 0.1, 0.1, 0.1)), "one": (1, None)}[routing]
    shape = (length, CFG.num_moe_layers, CFG.num_experts_per_tok)
    return Sample(
        tokens,
        mask,
        rng.normal(size=length).astype(np.float32),
        np.full(length, -4.5, np.float32),
        np.where(mask, 0, -1).astype(np.int32),
        routed_experts=rng.choice(pool, shape, p=odds).astype(np.int16),
    )


def run(settings: dict, routing: str, devices: int) -> dict[str, np.ndarray]:
    config = default_config()
    config.model.compute_dtype = "float32"
    config.parallel.update(dict.fromkeys(("data", "fsdp", "expert", "context", "tensor"), 1) | settings)
    mesh = make_mesh(config.parallel, jax.devices()[:devices])
    batch = make_batch(routing)
    arrays = _on(config, mesh, batch)
    params = jax.device_put(random_params(CFG), tree_shardings(mesh, param_axes(CFG)))
    options = StepOptions.from_config(config, make_ops(config, mesh))
    grads, sums = quick_jit(lambda p, b: accumulate(p, CFG, b, options))(params, arrays)
    leaves = {jax.tree_util.keystr(path): np.asarray(g) for path, g in jax.tree_util.tree_leaves_with_path(grads)}
    return {**leaves, "loss": np.asarray(sums["rl"])}


def _on(config: ConfigDict, mesh, batch: PackedBatch) -> dict[str, jax.Array]:
    specs = batch_specs(config, CFG, mesh, batch.shape)
    return jax.device_put(
        {name: batch.arrays[name] for name in specs}, {name: spec.sharding for name, spec in specs.items()}
    )


@lru_cache
def single(routing: str) -> dict[str, np.ndarray]:
    return run({}, routing, 1)


def error(mine: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(mine - expected) / max(np.linalg.norm(expected), 1e-6))


def main(names: list[str]) -> None:
    for name in names:
        settings, routing = CASES[name]
        mine, expected = run(settings, routing, 8), single(routing)
        errors = {key: error(mine[key], expected[key]) for key in expected}
        worst = max(errors, key=errors.__getitem__)
        print(json.dumps({"case": name, "worst": errors[worst], "tensor": worst, "loss": errors["loss"],
                          "size": float(np.linalg.norm(expected["['embed']['weight']"]))}), flush=True)  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:] or list(CASES))
