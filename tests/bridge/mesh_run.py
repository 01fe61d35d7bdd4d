"""Trains on a mesh of fake devices, from fresh weights or a checkpoint; run by test_meshes.py in a process.

python mesh_run.py CHECKPOINTS OUT.npz [axis=size]...: restores the checkpoint, or takes three steps and saves one;
writes the state as it then is, and the losses of the next ten steps.
"""

import sys

import jax
import numpy as np

from intellect_jax.bridge.checkpoint import Checkpoints
from intellect_jax.config import default_config
from intellect_jax.data.packing import pack
from intellect_jax.parallel.axes import AXES
from intellect_jax.parallel.mesh import make_mesh
from intellect_jax.parallel.ops import make_ops
from intellect_jax.trainer import setup
from intellect_jax.trainer.optimizer import make_optimizer
from intellect_jax.trainer.step import StepOptions, TrainState, make_train_step
from intellect_jax.types import PackedBatch, Sample
from tests.policies import SMALL, random_params

SAVED = 3  # the step of the checkpoint


def make_batch(step: int) -> PackedBatch:
    rng = np.random.default_rng(step)
    samples = []
    for length in rng.integers(4, 14, 12):
        tokens = rng.integers(0, SMALL.vocab_size, length).astype(np.int32)
        mask = np.arange(length) > 1
        advantages = rng.normal(size=length).astype(np.float32)
        staleness = np.where(mask, 0, -1).astype(np.int32)
        samples.append(Sample(tokens, mask, advantages, np.full(length, -4.5, np.float32), staleness))
    return pack(
        samples, step, rows=4, seq_buckets=(16,), microbatch_buckets=(3,), routed_shape=None, current_version=step - 1
    )


def main(folder: str, out: str, axes: dict[str, int]) -> None:
    config = default_config()
    config.model.compute_dtype = "float32"
    config.trainer.router_replay = False
    config.parallel.update(dict.fromkeys(AXES, 1) | axes)
    mesh = make_mesh(config.parallel)
    optimizer = make_optimizer(config.trainer.optimizer)
    abstract = setup.abstract_state(SMALL, mesh, optimizer)
    where = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    compiled = jax.jit(
        make_train_step(SMALL, StepOptions.from_config(config, make_ops(config, mesh)), optimizer),
        out_shardings=(where, None),
    )

    def step(state: TrainState, number: int) -> tuple[TrainState, float]:
        batch = make_batch(number)
        specs = setup.batch_specs(config, SMALL, mesh, batch.shape)
        arrays = jax.device_put(batch.arrays, {name: spec.sharding for name, spec in specs.items()})
        state, sums = compiled(state, arrays, 1e-3)
        return state, float(sums["rl"])

    checkpoints = Checkpoints(folder)
    if restored := checkpoints.restore(abstract):
        state = TrainState(*restored.state)
    else:
        params = jax.device_put(random_params(SMALL), where.params)
        state = TrainState(params, jax.jit(optimizer.init, out_shardings=where.opt_state)(params))
        for number in range(1, SAVED + 1):
            state, _ = step(state, number)
        checkpoints.save(SAVED, state, {})
    checkpoints.close()
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == where
    saved = {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(state)}
    losses = []
    for number in range(SAVED + 1, SAVED + 11):
        state, loss = step(state, number)
        losses.append(loss)
    np.savez(out, losses=losses, devices=len(jax.devices()), **saved)


if __name__ == "__main__":
    main(*sys.argv[1:3], {k: int(v) for k, v in (a.split("=") for a in sys.argv[3:])})
