"""The recipes for GPUs: that they resolve, hold what INTELLECT-3 was trained with, and fit their meshes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from evidence.gpu import DEBUG_TINY
from intellect_jax.bridge import Policy, save_pretrained
from intellect_jax.bridge.tokenizer import write_character_tokenizer
from intellect_jax.models.config import ModelConfig
from intellect_jax.models.transformer import init_params
from intellect_jax.parallel.axes import axis_sizes, refuse_uneven
from launch import roles
from launch.__main__ import main
from launch.configuration import load
from tests.policies import SMALL

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"


def run(*words: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "launch", *words],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model as Hugging Face has it, with a tokenizer."""
    root = tmp_path_factory.mktemp("base")
    write_character_tokenizer(root / "tokenizer")
    cfg = ModelConfig(**{**vars(SMALL), "vocab_size": 104})
    save_pretrained(Policy(init_params(cfg, 0), cfg), root / "model", tokenizer=root / "tokenizer")
    return root / "model"


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("--config=configs/glm45_air_rl.py",), marks=pytest.mark.slow),
        ("sft", "--config=configs/glm45_air_sft.py"),
        ("sft", "--config=configs/glm45_air_sft.py:stage2"),
    ],
    ids=lambda words: words[-1].split("/")[-1],
)
def test_dry_run_of_a_local_folder(folder, tmp_path, capsys, words):
    assert main([*words, f"--config.model.path={folder}", f"--config.run.root={tmp_path}", "--dry_run"]) == 0
    output = capsys.readouterr().out
    assert "trainer.optimizer.name = 'muon'" in output and "trainer.remat = 'full'" in output


def test_dry_run_without_the_download_says_so():
    id_ = "zai-org/GLM-4.5-Air-Base"
    done = run("--config=configs/glm45_air_rl.py", f"--config.model.path={id_}", "--dry_run", HF_HUB_OFFLINE="1")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert (
        f"model.path={id_}: cannot load the model {id_}: no such folder, nor from the Hugging Face Hub" in done.stderr
    )


def test_a_stage_that_is_none(capsys):
    assert main(["sft", "--config=configs/glm45_air_sft.py:stage3", "--dry_run"]) == 2
    assert "stage3: a stage is one of stage1, stage2" in capsys.readouterr().err


def test_the_recipe_of_rl_is_the_reports():
    config = load(CONFIGS / "glm45_air_rl.py")
    orchestrator, icepop = config.orchestrator, config.algorithm.icepop
    assert (orchestrator.batch_size, orchestrator.group_size) == (256 * 16, 16)
    assert orchestrator.max_off_policy_steps == 8 and config.sampler.max_len == 65536
    assert (icepop.alpha, icepop.beta, icepop.rollout_floor) == (0.5, 5.0, 1e-5)
    assert config.trainer.optimizer.learning_rate == 1e-6 and config.algorithm.advantage == "group_mean"


@pytest.mark.parametrize(
    ("recipe", "stage", "devices", "length"),
    [
        ("glm45_air_rl", None, 128, 65536),
        ("glm45_air_sft", "stage1", 512, 65536),
        ("glm45_air_sft", "stage2", 512, 98304),
    ],
)
def test_meshes_fit_the_model_and_the_devices(recipe, stage, devices, length):
    config = load(CONFIGS / f"{recipe}.py", stage)
    cfg = ModelConfig.from_config(config.model, 0)
    refuse_uneven(axis_sizes(config.parallel, devices), config, cfg)
    assert config.trainer.seq_buckets == (length,)
    if stage:
        tokens = config.sft.microbatches * config.trainer.rows * length
        assert 30e6 < tokens < 36e6 and config.sft.learning_rate == 5e-5


def test_one_gpu_is_shared_out():
    config = load(CONFIGS / "debug_gpu.py")
    shares = [roles.environment(config, role) for role in ("trainer", "sampler", "orchestrator")]
    assert [each.get("XLA_PYTHON_CLIENT_MEM_FRACTION") for each in shares] == ["0.55", "0.3", None]
    assert [each["JAX_PLATFORMS"] for each in shares] == ["cuda", "cuda", "cpu"]


def test_more_than_a_gpu_is_refused(capsys):
    assert main(["--config=configs/debug_gpu.py", "--config.sampler.num_servers=2", "--dry_run"]) == 2
    assert "the processes of one machine share its GPUs: at most 1 in all" in capsys.readouterr().err


@pytest.mark.slow
def test_the_loop_for_one_gpu_runs_on_a_cpu(tmp_path):
    done = run(
        *("--config=configs/debug_gpu.py", f"--config.run.root={tmp_path}", "--config.run.name=tiny"),
        *DEBUG_TINY,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    summary = json.loads((tmp_path / "tiny" / "summary.json").read_text())
    assert (summary["steps"], summary["sft_steps"], summary["process_deaths"]) == (3, 4, 0)
    assert summary["recompilations_after_warmup"] == 0
    assert (tmp_path / "tiny" / "export" / "config.json").is_file()
