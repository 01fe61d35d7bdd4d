"""Muon on a mesh takes the step of one device, and no device does what another does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.policies import relative_error

ROOT = Path(__file__).parents[2]
MESHES = ["fsdp=8", "expert=2,fsdp=4", "tensor=2,fsdp=4", "data=2,expert=2,fsdp=2", "context=2,tensor=2,expert=2"]

# (how many, rows, columns) of the matrices of muon_run.CFG; 5 iterations of X X^T, its square, and a product with X.
STACKS = [(2 * 8, 64, 96), (2 * 8, 48, 64), (3 * 8 * (8 + 1), 64, 96)]
EXPECTED = sum(count * 5 * (4 * r * r * c + 2 * r**3) for count, r, c in STACKS)


def run(out: Path, *meshes: str):
    """Updates by mesh and path, and FLOPs of a device by mesh."""
    env = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, str(Path(__file__).with_name("muon_run.py")), str(out), *meshes]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(np.load(out)), json.loads(done.stdout.splitlines()[-1])


def check(updates, flops, mesh: str) -> None:
    one = {key.removeprefix("one"): value for key, value in updates.items() if key.startswith("one")}
    errors = {path: relative_error(updates[mesh + path], expected) for path, expected in one.items()}
    worst = max(errors, key=errors.__getitem__)
    share = flops[mesh] / flops["one"]
    print(f"{mesh}: {len(errors)} arrays, {errors[worst]:.1e} {worst}; a device's share of the work {share:.4f}")
    assert errors[worst] <= 1e-5, worst
    assert flops["one"] == EXPECTED and share == 1 / 8


@pytest.mark.slow
def test_a_step_is_that_of_one_device_and_its_work_shared_evenly(tmp_path):
    check(*run(tmp_path / "out.npz", "one", "expert=2,fsdp=2,tensor=2"), "expert=2,fsdp=2,tensor=2")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return run(tmp_path_factory.mktemp("muon") / "out.npz", "one", *MESHES)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_a_step_on_every_mesh(runs, mesh):
    check(*runs, mesh)
