"""A run whose vLLM server somebody else started, by the command that `launch vllm` prints."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from launch.addresses import free_ports

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


def test_a_run_brings_its_versions_to_a_server_that_it_did_not_start_and_leaves_it_running(tmp_path):
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    launch = [sys.executable, "-m", "launch"]
    same = ["--config=configs/debug_vllm_cpu.py", f"--config.sampler.urls={url}"]
    env = os.environ | {"INTELLECT_JAX_WEIGHT_CACHE": str(tmp_path / "cache")}
    told = subprocess.run(
        [*launch, "vllm", *same, f"--out={tmp_path / 'server'}"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert told.returncode == 0, told.stderr
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(["sh", "-c", told.stdout], cwd=ROOT, env=env, stdout=log, stderr=log, process_group=0)
    try:
        small = ["--config.sft.steps=5", "--config.sft.decay_steps=2", "--config.eval.prompts=12"]
        small += ["--config.orchestrator.batch_size=16", "--config.orchestrator.group_size=4"]
        small += ["--config.trainer.max_steps=3", "--config.weights.transport=http"]
        where = [f"--config.run.root={tmp_path}", "--config.run.name=run"]
        done = subprocess.run([*launch, *same, *small, *where], cwd=ROOT, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:] + (tmp_path / "server.log").read_text()
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert (summary["steps"], summary["process_deaths"], summary["sampler_backend"]) == (3, 0, "vllm")
        assert summary["mismatch_max_fresh"] <= 1e-4
        assert not (tmp_path / "run" / "logs" / "sampler-0.log").exists()
        with urllib.request.urlopen(f"{url}/weight_info", timeout=10) as answer:
            assert json.load(answer)["weight_version"] == "0.3"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(30)
        finally:
            os.killpg(server.pid, signal.SIGKILL) if server.poll() is None else None
