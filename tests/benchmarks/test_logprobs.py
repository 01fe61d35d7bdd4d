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
    assert figures["demo_50%_members"]["all_logits_over_ours"] > 0
    assert figures["large_100%_members"]["ours_ms"] > 0
    assert figures["memory"]["64"]["all_logits_mib"] > 0


@pytest.mark.slow
def test_resident_memory_grows_at_most_linearly_and_holds_no_logits():
    short, long = (resident(f"--resident={tokens},16384,64") for tokens in (4096, 32768))
    assert 0 < long["resident_beyond_outputs_mib"] < 8 * short["resident_beyond_outputs_mib"]
    assert long["resident_beyond_outputs_mib"] < long["all_logits_mib"] / 20


def resident(argument):
    done = subprocess.run(
        [sys.executable, "benchmarks/logprobs.py", argument], cwd=ROOT, capture_output=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])
