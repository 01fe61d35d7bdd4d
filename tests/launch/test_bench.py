"""`launch bench`: batches that look like RL's, the lines that it prints, and its mistakes."""

import json

import numpy as np
import pytest

from intellect_jax.models.config import ModelConfig
from launch.__main__ import main
from launch.bench import measure
from launch.bench.batches import made_up_batch, segment_lengths
from launch.bench.rates import datasheet
from tests.policies import SMALL, of_family

TINY = ("family=llama", "hidden_size=16", "num_hidden_layers=1", "head_dim=8", "intermediate_size=16")


def argv(*changes: str) -> list[str]:
    small = [f"model.{key}" for key in TINY] + ["bench.rows=2", "bench.microbatches=3"]
    return ["bench", "--config=configs/debug_cpu.py", *(f"--config.{change}" for change in (*small, *changes))]


@pytest.mark.slow
def test_it_measures_the_real_step(capsys, monkeypatch):
    monkeypatch.setattr(measure, "SECONDS", 0.01)
    assert main(argv("bench.steps=3", "bench.warmup_steps=1")) == 0
    output = capsys.readouterr().out.splitlines()
    lines = [json.loads(line) for line in output if line.startswith("{")]
    assert [line["event"] for line in lines] == ["compiled", "warm-up", "step", "step", "step", "summary"]
    found = lines[-1]
    assert found["batch"] == [3, 2, 64] and found["recompilations"] == 0
    seconds = [line["seconds"] for line in lines[2:5]]
    assert found["step_s"] == {"median": sorted(seconds)[1], "min": min(seconds), "max": max(seconds)}
    assert found["tokens_per_s"] == pytest.approx(3 * 3 * 2 * 64 / sum(seconds))
    assert found["model_flops_per_s"] == pytest.approx(sum(line["flops"] for line in lines[2:5]) / sum(seconds))
    share = found["model_flops_per_s"] / found["measured_matmul_flops_per_s"]
    assert found["mfu_measured"] == pytest.approx(share) and 0 < share < 1
    assert found["mfu_datasheet"] is None and found["peak_bytes"] > 2**20
    assert all(line["grad_norm"] > 0 for line in lines[1:5])
    assert output[-3].startswith(f"{found['tokens_per_s']:,.0f} tokens/s; a step of 3 x 2 rows of 64 tokens")
    assert "recompilations 0" in output[-1]


def test_a_dry_run_and_mistakes_start_nothing(capsys):
    assert main([*argv(), "--dry_run"]) == 0
    assert "bench.steps = 10" in capsys.readouterr().out
    assert main(argv("bench.segment=3")) == 2
    assert "bench.segment=3: must be at least 4, or 0" in capsys.readouterr().err
    assert main([*argv(), "--fresh"]) == 2
    assert main(argv("parallel.tensor=3")) == 2


@pytest.mark.parametrize(("length", "mean"), [(64, 4), (64, 16), (65, 64), (64, 1000), (512, 100)])
def test_segments_fill_a_row(length, mean):
    lengths = segment_lengths(np.random.default_rng(0), length, mean)
    assert sum(lengths) == length and min(lengths) >= 2 and len(lengths) == max(1, round(length / mean))


@pytest.mark.parametrize("cfg", [SMALL, of_family("qwen3")])
def test_made_up_batches_look_like_those_of_rl(cfg: ModelConfig):
    arrays = made_up_batch(np.random.default_rng(0), (2, 3, 128), cfg, segment=32, replay=True).arrays
    again = made_up_batch(np.random.default_rng(0), (2, 3, 128), cfg, segment=32, replay=True).arrays
    assert all((arrays[name] == again[name]).all() for name in arrays)
    assert (arrays["segment_ids"] > 0).all() and arrays["segment_ids"].max() == 4
    answers = arrays["loss_mask"]
    assert 0.7 < answers.mean() < 0.98 and not answers[arrays["positions"] == 0].any()
    assert (arrays["sampler_logprobs"][answers] < 0).all() and not arrays["sampler_logprobs"][~answers].any()
    assert len(np.unique(arrays["advantages"][answers])) == 2 * 3 * 4  # one a sample
    assert set(np.unique(arrays["staleness"][answers])) == {0, 1, 2, 3}
    if not cfg.num_moe_layers:
        assert "routed_experts" not in arrays
        return
    routed = arrays["routed_experts"]
    assert routed.shape == (2, 3, 128, cfg.num_moe_layers, cfg.num_experts_per_tok)
    assert routed.min() == 0 and routed.max() == cfg.n_routed_experts - 1
    assert (np.diff(np.sort(routed)) > 0).all()  # a token never visits an expert twice


def test_datasheets_are_known_by_the_kind_of_device():
    assert datasheet("NVIDIA H100 80GB HBM3", "bfloat16") == datasheet("NVIDIA H200", "bfloat16") == 989.4e12
    assert datasheet("TPU v6 lite", "bfloat16") == 918e12
    assert datasheet("cpu", "float32") is None and datasheet("TPU v5 lite", "bfloat16") is None
