"""What changed on the devices is what changed between the files of two versions, on any mesh."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intellect_jax.bridge import published
from intellect_jax.bridge.huggingface import to_hf
from intellect_jax.bridge.published import Published
from intellect_jax.transport import changes
from intellect_jax.transport.changes import TooMany
from tests.policies import GLM4_MOE, OTHERS, random_params

ROOT = Path(__file__).parents[2]


def nudged(params, rate, seed=0):
    """A step of AdamW's size: every parameter moves by the rate, one way or the other."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + rate * np.sign(rng.normal(size=x.shape)).astype(np.float32), params)


@pytest.fixture(params=["in_memory", "on_the_device"])
def way(request, monkeypatch):
    """Changes are looked for in memory that the host sees, as on a CPU, and on the device, as everywhere else."""
    monkeypatch.setattr(published, "_is_in_memory", lambda array: request.param == "in_memory")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    "name",
    [
        "qwen3_tied",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("plain", "grouped", "tied_without_bias", "qwen3_moe", "llama_bias")
        ),
    ],
)
def test_changes_on_the_device_are_those_of_the_files(name):
    cfg = {**GLM4_MOE, **OTHERS}[name]
    old = random_params(cfg, 0)
    new = nudged(old, 1e-5)
    found = Published(jax.tree.map(jnp.asarray, old), cfg, "bfloat16").advance(jax.tree.map(jnp.asarray, new))
    before, after = dict(to_hf(old, cfg, "bfloat16")), dict(to_hf(new, cfg, "bfloat16"))
    assert [each.name for each in found] == list(after) and sum(each.changes.where.size for each in found) > 10
    for each in found:
        right = changes.find(before[each.name], after[each.name])
        assert (each.dtype, each.shape) == (after[each.name].dtype, after[each.name].shape)
        for got, wanted in zip(each.changes, right, strict=True):
            np.testing.assert_array_equal(got, wanted, err_msg=each.name)


@pytest.mark.slow
@pytest.mark.usefixtures("way")
def test_a_large_step_is_too_many_changes_and_the_next_small_one_is_not():
    cfg = dataclasses.replace(GLM4_MOE["plain"], vocab_size=512)  # an embedding too large to be allowed all changes
    old = random_params(cfg, 0)
    last = Published(old, cfg, "bfloat16")
    large = nudged(old, 3e-4)
    with pytest.raises(TooMany):
        last.advance(large)
    assert sum(each.changes.where.size for each in last.advance(nudged(large, 1e-6))) > 0
    assert sum(each.changes.where.size for each in last.advance(nudged(large, 1e-6))) == 0  # the same again


@pytest.mark.slow
@pytest.mark.parametrize("axes", [("fsdp=4", "tensor=2"), ("expert=4", "data=2")], ids="_".join)
def test_shards_of_a_mesh_hold_the_same_changes(axes):
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.bridge.published_run", *axes]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert " changes in " in done.stdout and not done.stdout.startswith("0 ")
