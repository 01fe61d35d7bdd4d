"""A whole run with two vLLM servers that get versions over HTTP, from the trainer and from each other."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


def test_vllm_gets_every_version_over_http_and_from_the_other_server(tmp_path):
    command = [
        *(sys.executable, "-m", "launch", "--config=configs/debug_vllm_cpu.py", f"--config.run.root={tmp_path}"),
        *("--config.run.name=relay", "--config.sft.steps=5", "--config.sft.decay_steps=2", "--config.eval.prompts=12"),
        *("--config.orchestrator.batch_size=16", "--config.orchestrator.group_size=4", "--config.trainer.max_steps=4"),
        *("--config.weights.transport=http", f"--config.weights.cache={tmp_path}"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=840)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run_dir = tmp_path / "relay"
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["steps"], summary["process_deaths"], summary["sampler_backend"]) == (4, 0, "vllm")
    assert summary["mismatch_max_fresh"] <= 1e-4
    sent, published = sent_and_published(run_dir)
    print(f"sent {sent:.1f} MB of {published:.1f} MB published, to two servers")
    assert 0 < sent < 2 * published
    assert not [*tmp_path.glob("intellect_jax-*/v*")], "caches are emptied at the end"


def sent_and_published(run_dir):
    """Bytes / 1e6."""
    found = re.search(r"([0-9.]+) MB of weights were sent", (run_dir / "logs" / "trainer.log").read_text())
    return float(found[1]), sum(p.stat().st_size for p in (run_dir / "weights").rglob("*") if p.is_file()) / 1e6
