"""Several processes save one checkpoint, agree that another is damaged, and one process alone goes on from it."""

import jax
import jax.numpy as jnp
import numpy as np

from intellect_jax.bridge.checkpoint import Checkpoints
from intellect_jax.models.transformer import abstract_params
from tests.bridge.processes import run_together
from tests.policies import SMALL, assert_trees_equal, random_params


def test_two_processes_save_and_skip_together(tmp_path):
    printed = run_together("checkpoint_run.py", 2, lambda index, port: [tmp_path / "saved", index, port], devices=2)
    assert printed == [{"step": 1, "ledger": {"step": 1}, "devices": 4}] * 2
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["1", "2", "damaged-2-0"]

    checkpoints = Checkpoints(tmp_path / "saved", read_only=True)
    abstract = {"params": abstract_params(SMALL), "step": jax.ShapeDtypeStruct((), jnp.int32)}
    restored = checkpoints.restore(abstract)
    checkpoints.close()
    assert restored.step == 2 and restored.ledger == {"step": 7} and np.asarray(restored.state["step"]) == 7
    assert_trees_equal(restored.state["params"], random_params(SMALL, seed=1))
