"""The script for a GPU, at toy size on a CPU: its commands are those that a GPU gets, and their figures mean nothing.

Its race and its run are in tests/oracle/test_trainer_vs_torch.py and tests/test_recipes.py.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*argv):
    argv = [sys.executable, "-m", "evidence.gpu", *argv]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=280)


@pytest.mark.slow
def test_figures_come_one_by_one_and_what_is_there_is_not_run_again(tmp_path):
    out = tmp_path / "gpu.json"
    arguments = ("--tiny", "--torch_python=/no/such/python", f"--out={out}")
    first = run(*arguments, "--parts=race,experts,attention,memory")
    assert first.returncode == 1 and "failed: race" in first.stdout, first.stderr
    assert "--torch_python=/no/such/python: no such interpreter" in first.stdout
    found = json.loads(out.read_text())
    assert set(found) == {"experts", "attention", "memory"}
    experts = found["experts"]["found"]
    ours = [row["over_dense"] for row in experts["rows"] if row["routing"] != "dense"]
    assert len(ours) == 10 and experts["least_share_of_dense_rate"] == round(1 / max(ours), 3)
    assert found["attention"]["found"]["chunked"]["one_segment"][0]["tokens"] == 256
    for kind in ("experts", "rows"):
        one = found["memory"]["found"][kind]
        assert one["planned"] == sum(one["by_kind"].values()) > 1e6
        assert one["planned_over_peak"] == round(one["planned"] / one["peak_bytes"], 3)
    again = run(*arguments, "--parts=experts,memory")
    assert again.returncode == 0 and again.stdout.count("already there") == 2
    assert json.loads(out.read_text()) == found


def test_without_a_gpu_it_says_so():
    done = run()
    assert done.returncode == 2 and "must be an H100, H200 or B200, or give --tiny" in done.stderr


def test_a_part_that_there_is_none_of():
    done = run("--parts=race,nothing")
    assert done.returncode == 2 and "--parts=nothing: must be out of race, experts" in done.stderr
