"""The race of the engines runs, without vLLM and small; its figures mean nothing at that size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_it_measures_our_server_through_the_fleets_client(tmp_path):
    out = tmp_path / "figures.json"
    argv = [sys.executable, "-m", "benchmarks.engines", "--quick", "--concurrent=2,8", "--rounds=1", f"--out={out}"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures == json.loads(out.read_text())
    assert figures["toy"]["concurrent"]["2"]["jax"] > 0 and figures["toy"]["concurrent"]["8"]["jax"] > 0
    assert figures["toy"]["recompiled"] == 0
