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
    argv = [sys.executable, "benchmarks/attention.py", "--heads=4", "--kv_heads=2", "--width=16", "--rounds=1"]
    argv += ["--lengths=4096,32768", "--short=128", f"--out={tmp_path / 'figures.json'}"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures == json.loads((tmp_path / "figures.json").read_text())
    assert figures["chunked"]["growth_over_linear"]["temporary_bytes"] < 1.1
    assert figures["native"]["growth_over_linear"]["resident_bytes"] < 1.1
    for kernel in ("native", "chunked"):
        whole, packed = figures[kernel]["one_segment"][-1], figures[kernel]["packed"][-1]
        assert whole["ms"] > 4 * packed["ms"]  # 32 segments: a 32nd of the scores
    assert figures["short"][0]["speedup"] > 0
