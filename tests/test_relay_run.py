"""A whole run whose samplers get versions over HTTP: every role a real process, no sampler looks into the folder."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from intellect_jax.monitor.metrics import read_metrics

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_samplers_get_every_version_over_http_and_from_each_other(tmp_path):
    command = [
        *(sys.executable, "-m", "launch", "--config=configs/debug_cpu.py", f"--config.run.root={tmp_path}"),
        *("--config.run.name=relay", "--config.sft.steps=5", "--config.sft.decay_steps=2", "--config.eval.prompts=12"),
        *("--config.orchestrator.batch_size=16", "--config.orchestrator.group_size=4", "--config.trainer.max_steps=4"),
        *("--config.sampler.num_servers=2", "--config.weights.transport=http", f"--config.weights.cache={tmp_path}"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=840)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run_dir = tmp_path / "relay"
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["steps"], summary["process_deaths"]) == (4, 0)
    assert summary["mismatch_max_fresh"] <= 1e-4
    logs = [(run_dir / "logs" / f"sampler-{i}.log").read_text() for i in range(2)]
    for log in logs:
        assert "Traceback" not in log, log
        assert set(re.findall(r"version (0\.\d): [0-9.]+ s, bytes", log)) >= {"0.0", "0.4"}, log
    assert any(re.search(r"\d+ from http://", log) for log in logs), "nothing was passed on"
    mib = float(re.search(r"([0-9.]+) MB of weights were sent", (run_dir / "logs" / "trainer.log").read_text())[1])
    published = sum(p.stat().st_size for p in (run_dir / "weights").rglob("*") if p.is_file()) / 1e6
    print(f"sent {mib} MB of {published:.1f} MB published, to two samplers")
    assert mib < 2 * published
    assert [row["version/number"] for row in read_metrics(run_dir) if row["role"] == "sampler-0"][-1] == 4
    assert not [*tmp_path.glob("intellect_jax-*/v*")], "caches are emptied at the end"
