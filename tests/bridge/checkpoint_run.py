"""Two processes save checkpoints together, one of which is damaged then; run by test_checkpoint_processes.py.

python checkpoint_run.py FOLDER INDEX PORT: prints the step that was restored.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from intellect_jax.bridge.checkpoint import HASHES, Checkpoints
from intellect_jax.config import default_config
from intellect_jax.models.transformer import abstract_params, param_axes
from intellect_jax.parallel.mesh import make_mesh, sharding, tree_shardings
from intellect_jax.parallel.processes import meet
from tests.policies import SMALL, random_params


def damage_the_second_file(step: Path) -> None:
    """Of those that are hashed: the share of process 1, so that process 0 has to be told."""
    name = list(json.loads((step / HASHES).read_text()))[1]
    content = bytearray((step / name).read_bytes())
    content[-1] ^= 1
    (step / name).write_bytes(content)


def main(folder: Path, index: int, port: str) -> None:
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, index, initialization_timeout=60)
    mesh = make_mesh(default_config().parallel)
    where = tree_shardings(mesh, param_axes(SMALL))

    everywhere = sharding(mesh)

    def state(step: int):
        params = jax.device_put(random_params(SMALL, seed=step), where)
        return {"params": params, "step": jax.device_put(jnp.int32(step), everywhere)}

    checkpoints = Checkpoints(folder)
    for step in (1, 2):
        checkpoints.save(step, state(step), {"step": step})
    checkpoints.wait()
    meet("both saved")
    if index == 0:
        damage_the_second_file(folder / "2")
    meet("damaged")
    shapes = jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), abstract_params(SMALL), where
    )
    restored = checkpoints.restore({"params": shapes, "step": jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)})
    print(json.dumps({"step": restored.step, "ledger": restored.ledger, "devices": jax.device_count()}))
    checkpoints.save(2, {**restored.state, "step": jax.device_put(jnp.int32(7), everywhere)}, {"step": 7})
    checkpoints.close()
    meet("done")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
