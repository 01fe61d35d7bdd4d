"""Trains adapters on meshes of fake devices and moves a checkpoint between them; run by test_lora_meshes.py.

python lora_run.py FOLDER OUT.npz: three steps on one device, on fsdp=4 and on expert=2 x fsdp=2, of which the second
is saved after step 2 and gone on with on the third. Every leaf is [state] of one run under <run><path>.
"""

import sys
from pathlib import Path

import jax
import numpy as np

from intellect_jax.bridge import Policy
from intellect_jax.bridge.checkpoint import Checkpoints
from intellect_jax.bridge.save import policy_tensors
from intellect_jax.config import default_config
from intellect_jax.models.lora import Adapter, init_adapter
from intellect_jax.models.lora_shape import TARGETS, Lora
from intellect_jax.models.transformer import param_axes
from intellect_jax.parallel.axes import AXES
from intellect_jax.parallel.mesh import make_mesh, tree_shardings
from intellect_jax.parallel.ops import make_ops
from intellect_jax.trainer import setup
from intellect_jax.trainer.optimizer import make_optimizer
from intellect_jax.trainer.step import StepOptions, TrainState, make_train_step
from tests.bridge.mesh_run import make_batch
from tests.policies import SMALL, random_params

LORA = Lora(4, 8.0, TARGETS)


class Run:
    def __init__(self, **axes: int):
        self.config = default_config()
        self.config.model.compute_dtype = "float32"
        self.config.trainer.router_replay = False
        self.config.trainer.optimizer.eps = 1e-3  # or rounding of the first step's tiny gradients would be magnified
        self.config.lora.update(rank=LORA.rank, alpha=LORA.alpha, targets=LORA.targets)
        self.config.parallel.update(dict.fromkeys(AXES, 1) | axes)
        devices = jax.devices()[: int(np.prod(list(axes.values()), initial=1))]
        self.mesh = make_mesh(self.config.parallel, devices)
        self.optimizer = make_optimizer(self.config.trainer.optimizer)
        self.abstract = setup.abstract_state(SMALL, self.mesh, self.optimizer, LORA)
        self.where = jax.tree.map(lambda leaf: leaf.sharding, self.abstract)
        self.base = jax.device_put(random_params(SMALL), tree_shardings(self.mesh, param_axes(SMALL)))
        options = StepOptions.from_config(self.config, make_ops(self.config, self.mesh))
        self.compiled = jax.jit(make_train_step(SMALL, options, self.optimizer), out_shardings=(self.where, None))

    def fresh(self) -> TrainState:
        factors = jax.device_put(init_adapter(SMALL, LORA, 0), self.where.params)
        return TrainState(factors, jax.jit(self.optimizer.init, out_shardings=self.where.opt_state)(factors))

    def step(self, state: TrainState, number: int) -> TrainState:
        batch = make_batch(number)
        specs = setup.batch_specs(self.config, SMALL, self.mesh, batch.shape)
        arrays = jax.device_put(batch.arrays, {name: spec.sharding for name, spec in specs.items()})
        return self.compiled(state, arrays, 1e-2, self.base)[0]


def main(folder: Path, out: Path) -> None:
    arrays, runs = {}, {"one": Run(), "fsdp": Run(fsdp=4), "expert": Run(expert=2, fsdp=2)}
    checkpoints = Checkpoints(folder)
    for name, run in runs.items():
        state = run.fresh()
        for number in (1, 2, 3):
            state = run.step(state, number)
            if name == "fsdp" and number == 2:
                checkpoints.save(2, state, {})
        arrays |= flat(name, state.params)
        policy = Policy(run.base, SMALL, None, Adapter(state.params, LORA))
        arrays |= {f"{name}/hf/{tensor}": value for tensor, value in policy_tensors(policy, "float32")}
    moved = runs["expert"]
    restored = checkpoints.restore(moved.abstract)
    assert restored is not None
    checkpoints.close()
    state = TrainState(*restored.state)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == moved.where
    arrays |= flat("moved", moved.step(state, 3).params)
    sharded = runs["expert"].where.params["moe_layers"]["moe"]["experts"]["lora"]["down_b"]
    np.savez(out, shard=sharded.shard_shape((2, 8, 4, 32)), **arrays)


def flat(name: str, tree) -> dict[str, np.ndarray]:
    return {name + jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
