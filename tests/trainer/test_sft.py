"""Supervised fine-tuning that is stopped or dies ends as if it had not."""

import jax
import pytest

from configs.debug_cpu import get_config
from intellect_jax.bridge.tokenizer import write_character_tokenizer
from intellect_jax.monitor.metrics import read_metrics
from intellect_jax.trainer import setup
from intellect_jax.trainer.sft import FOLDER, forget_sft, run_sft
from tests.policies import assert_trees_equal

STEPS = 7


OPTIMIZERS = {"adamw": {}, "muon": {"name": "muon", "moments_dtype": "bfloat16", "offload": True}}


@pytest.fixture(scope="module", params=["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def trainer(request, tmp_path_factory):
    config = get_config()
    config.trainer.optimizer.update(OPTIMIZERS[request.param])
    config.model.hidden_size, config.model.num_hidden_layers = 32, 2
    config.trainer.microbatch_buckets, config.trainer.rows = (1,), 4
    config.sft.steps, config.sft.warmup_steps, config.sft.decay_steps = STEPS, 2, 2
    config.checkpoint.every = 2
    return setup.create(config, with_tokenizer(tmp_path_factory.mktemp("run")))


def with_tokenizer(run_dir):
    write_character_tokenizer(run_dir / "tokenizer")
    return run_dir


def stop_after(run_dir, steps):
    """Asks to stop once ``steps`` steps are logged."""
    return lambda: len([r for r in read_metrics(run_dir) if r["role"] == "sft"]) >= steps


@pytest.fixture(scope="module")
def unbroken(trainer, tmp_path_factory):
    return jax.device_get(run_sft(trainer, with_tokenizer(tmp_path_factory.mktemp("unbroken"))))


def test_a_stopped_run_goes_on_and_ends_bit_for_bit_like_an_unbroken_one(trainer, unbroken, tmp_path):
    run_dir = with_tokenizer(tmp_path)
    assert run_sft(trainer, run_dir, stop_after(run_dir, 3)) is None
    assert run_sft(trainer, run_dir, stop_after(run_dir, 4)) is None
    assert_trees_equal(run_sft(trainer, run_dir), unbroken)
    steps = [r["step"] for r in read_metrics(run_dir) if r["role"] == "sft"]
    assert steps == list(range(1, STEPS + 1)), "no step was lost or done twice"
    forget_sft(run_dir)
    assert not (run_dir / FOLDER).exists()


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(trainer, unbroken, tmp_path):
    run_dir = with_tokenizer(tmp_path)
    assert run_sft(trainer, run_dir, stop_after(run_dir, 5)) is None
    (run_dir / FOLDER / "5" / "hashes.json").unlink()
    assert_trees_equal(run_sft(trainer, run_dir), unbroken)
    assert [r["step"] for r in read_metrics(run_dir) if r["role"] == "sft"] == [1, 2, 3, 4, 5, 5, 6, 7]
