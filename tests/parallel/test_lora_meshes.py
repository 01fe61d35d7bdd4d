"""Adapters train the same on any mesh, and their checkpoints move between meshes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    env = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    script = Path(__file__).with_name("lora_run.py")
    command = [sys.executable, str(script), str(folder / "checkpoints"), str(folder / "out.npz")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(np.load(folder / "out.npz"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp", "expert", "moved"])
def test_three_steps_are_those_of_one_device(runs, name):
    expected = {key.removeprefix("one"): value for key, value in runs.items() if key.startswith("one")}
    mine = {key.removeprefix(name): value for key, value in runs.items() if key.startswith(name)}
    assert mine and mine.keys() <= expected.keys()
    errors = {
        key: float(np.linalg.norm(value - expected[key]) / np.linalg.norm(expected[key])) for key, value in mine.items()
    }
    worst = max(errors, key=errors.__getitem__)
    print(f"{name}: {len(mine)} arrays, {errors[worst]:.1e} {worst}")
    assert errors[worst] < 1e-4, worst


@pytest.mark.slow
def test_factors_of_experts_are_sharded_over_experts(runs):
    assert runs["shard"].tolist() == [2, 4, 4, 16]
