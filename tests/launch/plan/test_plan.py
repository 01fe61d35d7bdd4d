"""`python -m launch plan` as a person runs it, for devices of this machine's kind."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from intellect_jax.config import to_plain
from intellect_jax.models.config import ModelConfig
from launch.__main__ import main
from launch.plan.compile import Request, compile_step
from launch.plan.model_flops import Batch, step_flops
from tests.launch.plan.tiny import get_config

ROOT = Path(__file__).parents[3]
TINY = "tests/launch/plan/tiny.py"


def plan(*words):
    argv = [sys.executable, "-m", "launch", "plan", *words]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_one_device(tmp_path):
    """On one device nothing is repeated: what the program executes is what its trace says."""
    done = plan(f"--config={TINY}", "--devices=1", "--target=cpu", f"--out={tmp_path / 'plan.json'}")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "plan.json").read_text())
    config = get_config()
    cfg, batch = ModelConfig.from_config(config.model, 0), Batch(16, 2, 32)
    assert found["model_flops"] == step_flops(cfg, batch)
    assert found["executed_flops"] == pytest.approx(found["traced_flops"], rel=0.03)
    assert found["collectives"] == []
    assert found["fits"] and found["memory_by"] == "compiler" and found["memory"]["parameters"] > 0
    assert found["memory"]["optimizer"] == pytest.approx(2 * found["memory"]["parameters"], rel=0.01)
    assert found["fleet"] and all(0 <= row["trainer_idle"] <= 1 for row in found["fleet"])
    for text in ("FITS", "bound by", "model FLOPs", "parameters", "fleet"):
        assert text in done.stdout


@pytest.mark.slow
def test_two_devices_split_state_and_talk():
    config = get_config("2")
    compiled = compile_step(Request(to_plain(config), 0, "cpu", 2, "cpu"))
    assert compiled.mesh["expert"] == 2
    assert {axes for each in compiled.collectives for axes in each.axes} == {"expert"}
    whole = compile_step(Request(to_plain(get_config()), 0, "cpu", 1, "cpu"))
    experts = 3 * 4 * 32 * 16 * 4  # bytes, of one layer
    assert whole.state["parameters"] - compiled.state["parameters"] == experts / 2


@pytest.mark.slow
def test_a_search_compiles_the_best_and_ranks_them(tmp_path):
    done = plan(f"--config={TINY}", "--devices=2", "--target=cpu", "--search", f"--out={tmp_path / 'plan.json'}")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "plan.json").read_text())
    times = [each["roofline"]["serial"] for each in found["search"]]
    assert len(times) == 4 and times == sorted(times)
    assert re.search(r"1\. .*remat=", done.stdout)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--devices=8", "--target=h300"], "--target=h300: must be one of h100, h200, b200, v5p, v6e, cpu"),
        (["--target=h200"], "--devices: how many devices"),
        (["--devices=many"], "--devices=many: must be 0 or more"),
        (["--devices=12", "--target=h200"], "--devices=12: h200 comes in nodes of 8"),
        (["--devices=3"], "trainer.rows=2: must be a multiple of 3"),
        (["--devices=2", "--config.parallel.fsdp=1"], "do not multiply to 2 devices"),
        (["--devices=1", "--config.plan.response_p95=9.0"], "a lognormal's 95th percentile"),
    ],
)
def test_mistakes_are_one_line_before_anything_compiles(words, said, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["plan", f"--config={TINY}", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_flags_of_plan_mean_nothing_to_others(capsys):
    assert main([f"--config={TINY}", "--devices=8"]) == 2
    assert "--devices means nothing to `launch run`" in capsys.readouterr().err


@pytest.mark.slow
def test_a_compiler_that_fails_is_told_with_its_last_words(tmp_path):
    config = to_plain(get_config())
    config["model"]["path"] = str(tmp_path / "nothing")
    with pytest.raises(RuntimeError, match="exit code 1"):
        compile_step(Request(config, 0, "cpu", 1, "cpu"))
    assert os.listdir(tmp_path) == []
