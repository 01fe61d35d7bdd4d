"""The guard where tokens, sequences and experts lie on different devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_healthy_batch_passes_and_a_wrong_expert_is_named_on_a_mesh(tmp_path):
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(Path(__file__).with_name("guard_run.py")), str(tmp_path)]
    done = subprocess.run(command, env=os.environ | devices, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["devices"] == 8 and found["error"] < 1e-5
    assert found["first"]["name"] == "experts" and "layer 2, expert 3:" in found["first"]["evidence"], found
