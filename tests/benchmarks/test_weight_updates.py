"""The measurements of weight updates run, at toy size; their figures mean nothing there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*argv):
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *argv], cwd=ROOT, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_delta_is_a_fraction_of_the_bytes_and_identical():
    (found,) = run("-m", "benchmarks.weight_sync", "--models=tiny")["models"]
    assert found["identical"] and found["full_at_3e-4"]
    assert found["delta"]["bytes"] < 0.1 * found["full"]["bytes"] and found["delta_share"]["last"] < 0.05
    assert all(found[kind][what] > 0 for kind in ("delta", "full") for what in ("publish_s", "apply_s", "pause_s"))


@pytest.mark.slow
def test_pauses_and_tokens_are_measured_while_versions_come():
    found = run("-m", "benchmarks.update_pause", "--quick", "--concurrent=4")["jax"]
    assert found["updates"] >= 1 and 0 < found["pause_ms"] <= found["longest_pause_ms"] and found["tokens_per_s"] > 0
