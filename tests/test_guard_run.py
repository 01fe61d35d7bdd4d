"""A run whose sampler serves wrong weights of one expert, as a person starts it; and the same run with right ones."""

import json
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from intellect_jax.bridge.tokenizer import write_character_tokenizer
from intellect_jax.config import to_plain
from intellect_jax.monitor.metrics import read_metrics
from launch.addresses import free_ports
from launch.configuration import load

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[1]
STEPS = 12
LAYER, EXPERT = 1, 2  # among the layers with experts: the model's layer 2


def recipe(root, url):
    """The demo with a smaller policy, from fresh weights large enough to have opinions."""
    config = load(ROOT / "configs" / "debug_cpu.py")
    config.model.update({"hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 32})
    config.model.update({"n_routed_experts": 8, "initializer_range": 0.2})
    config.orchestrator.update({"batch_size": 32, "group_size": 4})
    config.orchestrator.max_off_policy_steps = 0  # so that every batch has tokens to compare
    config.trainer.update({"max_steps": STEPS, "rows": 16, "microbatch_buckets": (2,)})
    config.trainer.optimizer.decay_steps = 0
    config.trainer.optimizer.schedule = "constant"
    config.run.update({"root": str(root), "name": "tiny"})
    config.sft.steps, config.eval.prompts, config.sampler.urls = 0, 4, (url,)
    return config


def answers(url):
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


@contextmanager
def sampler(folder, config, *wrong):
    """A server of the test's own, which the launcher does not start; ready when the block begins."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(to_plain(config)))
    write_character_tokenizer(folder / "tokenizer")
    argv = [sys.executable, "-m", "tests.trainer.guard.tampered_sampler", str(folder), *map(str, wrong)]
    with (folder / "log").open("wb") as output:
        process = subprocess.Popen(argv, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 240
        while not answers(config.sampler.urls[0]):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()[-3000:]
            time.sleep(0.2)
        yield
    finally:
        process.kill()
        process.wait(10)


def run(tmp_path, *wrong):
    """(the finished `python -m launch`, run directory)."""
    config = recipe(tmp_path, f"http://127.0.0.1:{free_ports(1)[0]}")
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(to_plain(config)))
    with sampler(tmp_path / "sampler", config, *wrong):
        command = [sys.executable, "-m", "launch", f"--config={file}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    return done, tmp_path / "tiny"


def test_wrong_weights_of_one_expert_stop_the_run_at_once_and_name_it(tmp_path):
    done, run_dir = run(tmp_path, LAYER, EXPERT)
    said = done.stdout + done.stderr
    assert done.returncode == 1, said[-3000:]
    assert "the sampler's log-probabilities are not the trainer's" in said and "Traceback" not in said
    assert "starting it again" not in said, "it would only happen again"
    assert "1. experts (explains" in said and f"layer {LAYER + 1}, expert {EXPERT}:" in said, said[-4000:]
    steps = [row["step"] for row in read_metrics(run_dir) if row["role"] == "trainer"]
    assert steps == [], "it stops before the first step"
    found = json.loads((run_dir / "guard.json").read_text())
    assert found["suspects"][0]["name"] == "experts" and found["step"] == 1
    assert not (run_dir / "checkpoints" / "1").exists()


def test_the_same_run_with_right_weights_goes_through(tmp_path):
    done, run_dir = run(tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = [row for row in read_metrics(run_dir) if row["role"] == "trainer"]
    checked = {row["step"]: row["guard/error"] for row in rows if "guard/error" in row}
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert 1 in checked and max(checked) >= 11 and max(checked.values()) < 1e-5
    assert json.loads((run_dir / "summary.json").read_text())["recompilations_after_warmup"] == 0
    assert not (run_dir / "guard.json").exists()
