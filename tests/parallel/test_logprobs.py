import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FEW = ["fsdp=2 context=2 tensor=2", "tensor=8"]  # the vocabulary in pieces of several chunks, and of one
MANY = [
    "fsdp=8", "context=8", "expert=8", "data=8", "fsdp=4 tensor=2", "context=4 tensor=2", "data=2 tensor=4",
    "expert=2 tensor=4", "data=2 fsdp=2 expert=2", "expert=2 fsdp=2 context=2",
]  # fmt: skip


@pytest.mark.parametrize("meshes", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"])
def test_a_head_over_a_mesh_equals_one_device_gradients_included(meshes):
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, str(Path(__file__).with_name("logprobs_run.py")), *meshes]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    errors = json.loads(done.stdout.splitlines()[-1])
    assert list(errors) == meshes
    assert max(map(max, errors.values())) <= 1e-5, errors
