"""The benchmark of import and export runs, small; its figures mean nothing at that size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_it_measures_both_against_raw(tmp_path):
    argv = [sys.executable, "benchmarks/bridge.py", "--gigabytes=0.1", f"--folder={tmp_path}"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["import_over_raw_read_speed"] > 0 and figures["export_over_raw_write_speed"] > 0
    assert list(tmp_path.iterdir()) == []
