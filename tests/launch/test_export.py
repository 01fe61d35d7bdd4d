"""`launch export`: the parameters of a checkpoint, whatever else the state holds, as a Hugging Face folder."""

import os
import pickle
import subprocess
import sys

import jax
import optax
import pytest

from intellect_jax.bridge.checkpoint import Checkpoints
from intellect_jax.bridge.load import load_pretrained
from intellect_jax.bridge.tokenizer import load_tokenizer, write_character_tokenizer
from intellect_jax.config import default_config
from intellect_jax.errors import UserError
from intellect_jax.models.config import ModelConfig
from intellect_jax.trainer.step import TrainState
from launch.export import main
from tests.policies import assert_trees_equal, random_params


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(config, run directory with checkpoints of steps 3 and 5, parameters by step)."""
    config = default_config()
    config.model.update(
        {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24, "moe_intermediate_size": 8}
    )
    config.export.dtype = "float32"
    run_dir = tmp_path_factory.mktemp("run")
    write_character_tokenizer(run_dir / "tokenizer")
    cfg = ModelConfig.from_config(config.model, len(load_tokenizer(run_dir / "tokenizer")))
    params = {step: random_params(cfg, seed=step) for step in (3, 5)}
    checkpoints = Checkpoints(run_dir / "checkpoints")
    for step, tree in params.items():
        on_device = jax.device_put(tree)
        checkpoints.save(step, TrainState(on_device, optax.adamw(1e-3).init(on_device)), {})
    checkpoints.close()
    return config, run_dir, params


@pytest.mark.parametrize(("checkpoint", "step"), [("", 5), ("3", 3)])
def test_exports_the_newest_or_the_asked_for(run, tmp_path, checkpoint, step):
    config, run_dir, params = run
    assert main(config, run_dir, tmp_path / "out", checkpoint) == 0
    assert_trees_equal(load_pretrained(tmp_path / "out").params, params[step])
    assert load_tokenizer(tmp_path / "out").get_vocab() == load_tokenizer(run_dir / "tokenizer").get_vocab()


SPREAD = """
import pathlib, pickle, sys
import jax
from intellect_jax.parallel.mesh import spread
from launch.export import main
assert spread(16).shape["fsdp"] == 4 and spread(9).shape["fsdp"] == 3 and len(jax.devices()) == 5
config = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())
sys.exit(main(config, pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])))
"""


def test_a_machine_of_several_devices_holds_the_policy_on_all_of_them(run, tmp_path):
    config, run_dir, params = run
    (tmp_path / "config").write_bytes(pickle.dumps(config))
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=5", "JAX_PLATFORMS": "cpu"}
    argv = [sys.executable, "-c", SPREAD, tmp_path / "config", run_dir, tmp_path / "out"]
    subprocess.run(argv, env=environment, check=True, timeout=120)
    assert_trees_equal(load_pretrained(tmp_path / "out").params, params[5])


@pytest.mark.parametrize("checkpoint", ["4", "newest"])
def test_an_unknown_checkpoint_is_the_users_mistake(run, tmp_path, checkpoint):
    config, run_dir, _ = run
    with pytest.raises(UserError, match=r"has checkpoints of steps \[3, 5\]"):
        main(config, run_dir, tmp_path / "out", checkpoint)
    assert not (tmp_path / "out").exists()


def test_a_run_without_checkpoints_is_the_users_mistake(run, tmp_path):
    config, run_dir, _ = run
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "tokenizer").symlink_to(run_dir / "tokenizer")
    with pytest.raises(UserError, match="no checkpoint to export"):
        main(config, empty, tmp_path / "out")
    assert not (empty / "checkpoints").exists()
