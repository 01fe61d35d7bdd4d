"""Prints loss and gradients' checksums of one step on a mesh of fake devices; run by test_mesh.py in a process."""

import json
import sys

import jax
import numpy as np

from intellect_jax.config import default_config
from intellect_jax.data.packing import pack
from intellect_jax.models.transformer import abstract_params, param_axes
from intellect_jax.parallel.axes import AXES
from intellect_jax.parallel.mesh import make_mesh, tree_shardings
from intellect_jax.parallel.ops import make_ops
from intellect_jax.trainer.setup import batch_specs
from intellect_jax.trainer.step import StepOptions, accumulate
from intellect_jax.types import Sample
from tests.policies import SMALL, quick_jit, random_params


def main(out: str, **axes: int) -> None:
    config = default_config()
    config.model.compute_dtype = "float32"
    config.parallel.update(dict.fromkeys(AXES, 1) | axes)
    mesh = make_mesh(config.parallel)
    rng = np.random.default_rng(0)
    samples = []
    for length in rng.integers(4, 14, 20):
        tokens = rng.integers(0, SMALL.vocab_size, length).astype(np.int32)
        mask = np.arange(length) > 1
        samples.append(
            Sample(tokens, mask, rng.normal(size=length).astype(np.float32), np.full(length, -4.5, np.float32),
                   np.where(mask, 0, -1).astype(np.int32))
        )  # fmt: skip
    batch = pack(samples, 1, rows=8, seq_buckets=(16,), microbatch_buckets=(3,), routed_shape=None, current_version=0)
    config.trainer.router_replay = False
    specs = batch_specs(config, SMALL, mesh, batch.shape)
    arrays = jax.device_put(batch.arrays, {name: spec.sharding for name, spec in specs.items()})
    shardings = tree_shardings(mesh, param_axes(SMALL))
    params = jax.device_put(random_params(SMALL), shardings)
    options = StepOptions.from_config(config, make_ops(config, mesh))
    grads, sums = quick_jit(lambda p, b: accumulate(p, SMALL, b, options))(params, arrays)
    leaves = {jax.tree_util.keystr(p): np.asarray(g) for p, g in jax.tree_util.tree_leaves_with_path(grads)}
    np.savez(out, loss=np.asarray(sums["rl"]), **leaves)
    used = {s for p in jax.tree.leaves(params) for s in [len(p.sharding.device_set)]}
    print(json.dumps({"devices": max(used), "shapes": len(jax.tree.leaves(abstract_params(SMALL)))}))


if __name__ == "__main__":
    main(sys.argv[1], **{k: int(v) for k, v in (a.split("=") for a in sys.argv[2:])})
