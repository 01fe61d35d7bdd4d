import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from intellect_jax.config import default_config
from intellect_jax.models.config import ModelConfig
from intellect_jax.parallel.axes import axis_sizes, refuse_uneven

ROOT = Path(__file__).parents[2]


def run_on(devices, out, *axes):
    env = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, str(Path(__file__).with_name("sharded_step.py")), str(out), *axes]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(np.load(out))


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return run_on(1, tmp_path_factory.mktemp("mesh") / "single.npz")


@pytest.mark.slow
@pytest.mark.parametrize("axes", [("expert=2", "fsdp=2", "tensor=2")])
def test_loss_and_gradients_on_a_mesh_equal_one_device(single, tmp_path, axes):
    sharded = run_on(8, tmp_path / "sharded.npz", *axes)
    assert single.keys() == sharded.keys()
    for name, expected in single.items():
        error = np.linalg.norm(sharded[name] - expected) / max(np.linalg.norm(expected), 1e-6)
        assert error < 1e-5, f"{name}: {error}"


def test_one_free_axis_takes_the_devices_that_are_left():
    parallel = default_config().parallel
    parallel.tensor = 2
    assert axis_sizes(parallel, 8) == {"data": 1, "fsdp": 4, "expert": 1, "context": 1, "tensor": 2}
    with pytest.raises(ValueError, match="do not multiply to 3 devices"):
        axis_sizes(parallel, 3)
    parallel.data = -1
    with pytest.raises(ValueError, match="only one axis may be -1"):
        axis_sizes(parallel, 8)


def test_a_length_that_its_axes_do_not_divide_is_told():
    config = default_config()
    cfg = ModelConfig.from_config(config.model, 102)
    sizes = {"data": 1, "fsdp": 4, "expert": 1, "context": 1, "tensor": 1}
    refuse_uneven(sizes, config, cfg)
    with pytest.raises(
        ValueError, match=r"trainer.rows=8: must be a multiple of 16 to be sharded over parallel.data=4"
    ):
        refuse_uneven(sizes | {"data": 4}, config, cfg)
    with pytest.raises(ValueError, match=r"model.vocab_size=102: must be a multiple of 4"):
        refuse_uneven(sizes | {"tensor": 4}, config, cfg)


def test_what_devices_that_share_a_row_cannot_split_is_told():
    config = default_config()
    config.trainer.seq_buckets = (24,)
    cfg = ModelConfig.from_config(config.model, 128)
    sizes = {"data": 1, "fsdp": 1, "expert": 1, "context": 8, "tensor": 1}
    with pytest.raises(
        ValueError, match=r"trainer.seq_buckets=24: must be a multiple of 16 for parallel.context=8 by ring"
    ):
        refuse_uneven(sizes, config, cfg)
    config.parallel.context_strategy = "ulysses"
    heads = cfg.num_attention_heads
    with pytest.raises(ValueError, match=rf"model.num_attention_heads={heads}: a device of parallel.tensor=1 holds"):
        refuse_uneven(sizes | {"context": 3}, config, cfg)
