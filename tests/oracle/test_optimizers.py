"""Steps of AdamW and Muon are those of torch.optim."""

import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

from intellect_jax.config import default_config
from intellect_jax.trainer.optimizer import make_optimizer
from tests.policies import quick_jit, relative_error

pytestmark = pytest.mark.oracle

WORKER = Path(__file__).with_name("optimizers_worker.py")
STEPS, SHAPE = 5, (48, 32)
NUMBERS = {"rate": 0.02, "decay": 0.1, "b1": 0.9, "b2": 0.95, "eps": 1e-6, "momentum": 0.95}


def given():
    rng = np.random.default_rng(0)
    w, g = rng.normal(size=SHAPE), rng.normal(size=(STEPS, *SHAPE))
    return {"w": w.astype(np.float32), "g": g.astype(np.float32), **NUMBERS}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory, oracle_python):
    folder = tmp_path_factory.mktemp("optimizers")
    np.savez(folder / "in.npz", **given())
    subprocess.run([oracle_python, WORKER, folder / "in.npz", folder / "out.npz"], check=True, timeout=120)
    return dict(np.load(folder / "out.npz"))


def trajectory(**changes):
    opt = default_config().trainer.optimizer
    opt.update(clip_norm=1e9, weight_decay=NUMBERS["decay"], **{n: NUMBERS[n] for n in ("b1", "b2", "eps")})
    opt.update_from_flattened_dict({"muon.momentum": NUMBERS["momentum"], **changes})
    optimizer = make_optimizer(opt)
    params = {"dense_layers": {"mlp": {"up": {"kernel": given()["w"][None]}}}}
    state, after = optimizer.init(params), []
    update = quick_jit(optimizer.update)
    for gradient in given()["g"]:
        updates, state = update(jax.tree.map(lambda _, g=gradient: g[None], params), state, params)
        params = jax.tree.map(lambda p, u: p - NUMBERS["rate"] * u, params, updates)
        after.append(np.asarray(jax.tree.leaves(params)[0][0]))
    return np.stack(after)


@pytest.mark.parametrize(
    ("name", "changes", "tolerance"),
    [
        ("adamw", {}, 1e-5),
        ("muon_float32", {"name": "muon", "muon.dtype": "float32"}, 1e-4),  # the iterations magnify rounding
        ("muon", {"name": "muon"}, 0.1),  # in bfloat16 both are 5% away from float32
        ("muon_plain", {"name": "muon", "muon.nesterov": False}, 0.1),
    ],
)
def test_steps_equal_torch(theirs, name, changes, tolerance):
    start, mine = given()["w"], trajectory(**changes)
    errors = [relative_error(mine[i] - start, theirs[name][i] - start) for i in range(STEPS)]
    print(f"{name}: {max(errors):.1e} of what {STEPS} steps moved")
    assert max(errors) <= tolerance
