"""The benchmark of token log-probabilities runs, small; its figures mean nothing at that size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_it_compares_both_and_measures_memory(tmp_path):
    out = tmp_path / "figures.json"
    argv = [sys.executable, "benchmarks/logprobs.py", "--rounds=1", "--large=32,300,8", "--lengths=64", f"--out={out}"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert json.loads(out.read_text()) == figures
    assert figures["demo_50%_members"]["naive_over_chunked"] > 0
    assert figures["large_100%_members"]["chunked_ms"] > 0
    assert figures["memory"]["64"]["temporary_mib"] > 0
