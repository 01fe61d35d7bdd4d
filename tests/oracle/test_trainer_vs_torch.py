"""The race against PyTorch runs, small, and both sides take the same steps; its speeds mean nothing at that size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.oracle
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("shape", ["toy", "glm_block_toy"])
def test_both_sides_take_the_same_steps(oracle_python, tmp_path, shape):
    out = tmp_path / "results" / "race.json"
    argv = ["benchmarks/trainer_vs_torch.py", f"--torch_python={oracle_python}", f"--shape={shape}", f"--out={out}"]
    done = subprocess.run(
        [sys.executable, *argv, "--rounds=2", "--steps=1"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert json.loads(out.read_text()) == found
    assert found["ratio"] == pytest.approx(sum(found["ratios"]) / 2, abs=1e-3) and len(found["ratios"]) == 2
    assert found["ours"]["recompilations"] == 0 and found["peer"].startswith("torch ")
    assert all(found[side]["tokens_per_s"] > 0 and found[side]["mfu_measured_matmul"] > 0 for side in ("ours", "torch"))
    assert {"jax", "torch", "transformers"} <= found["versions"].keys()
    assert done.stdout.count("losses differ by") == len(found["peers_step_s"])


def test_a_missing_interpreter_is_said_at_once():
    argv = [sys.executable, "benchmarks/trainer_vs_torch.py", "--torch_python=/nowhere/python"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "--torch_python=/nowhere/python: no such interpreter" in done.stderr
