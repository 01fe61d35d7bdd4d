"""The benchmark of the grouped matmul runs, small; its figures mean nothing at that size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_it_measures_against_dense(tmp_path):
    out = tmp_path / "figures.json"
    argv = [sys.executable, "benchmarks/grouped_matmul.py", "--shapes=toy", "--rounds=2", f"--out={out}"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures == json.loads(out.read_text())
    assert {row["routing"] for row in figures["rows"]} >= {"dense", "even", "nearly all in one", "half empty"}
    assert all(row["over_dense"] > 0 for row in figures["rows"])
    assert figures["8_over_2_groups"]["even"] > 0
