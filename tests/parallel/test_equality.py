"""The step on eight devices is that on one: every axis alone and in pairs, every strategy, every routing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parallel.equality_run import CASES

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results():
    env = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, str(Path(__file__).with_name("equality_run.py"))]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    return {line["case"]: line for line in map(json.loads, done.stdout.splitlines())}


@pytest.mark.slow
@pytest.mark.timeout(1300)
@pytest.mark.parametrize("case", CASES)
def test_loss_and_every_gradient_equal_one_device(results, case):
    print(results[case])
    assert results[case]["size"] > 1e-3
    assert results[case]["worst"] < 1e-5
