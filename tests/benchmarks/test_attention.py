"""The benchmark of attention runs, small: its times mean nothing at that size, its memory does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_memory_with_gradients_grows_linearly(tmp_path):
    argv = [sys.executable, "benchmarks/attention.py", "--heads=2", "--kv_heads=1", "--width=8", "--rounds=1"]
    argv += ["--lengths=4096,32768", "--short=128", f"--out={tmp_path / 'figures.json'}"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures == json.loads((tmp_path / "figures.json").read_text())
    chunked = figures["chunked"]
    assert chunked["growth_over_linear"]["temporary_bytes"] < 1.1
    whole, packed = chunked["one_segment"][-1], chunked["packed"][-1]
    assert whole["ms"] > 4 * packed["ms"]  # 32 segments: a 32nd of the scores
    assert figures["short"][0]["speedup"] > 0
