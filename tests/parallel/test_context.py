import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from intellect_jax.kernels.attention import chunked
from intellect_jax.parallel.context import ulysses, zigzag
from tests.kernels.attention_cases import packed_case

ROOT = Path(__file__).parents[2]


def errors_on(*meshes):
    """The largest relative L2 error of output and gradients, by mesh and strategy."""
    env = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, str(Path(__file__).with_name("context_run.py")), *meshes]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    errors = {(name, strategy): error for name, strategy, error in map(json.loads, done.stdout.splitlines())}
    assert len(errors) == 2 * len(meshes)
    return errors


def test_attention_on_a_mesh_equals_one_device():
    errors = errors_on("context2_tensor2_fsdp2")
    assert max(errors.values()) <= 1e-5, errors


@pytest.mark.slow
def test_attention_on_every_mesh_equals_one_device():
    errors = errors_on("context8", "context4_fsdp2", "expert2_context4", "fsdp4_tensor2")
    assert max(errors.values()) <= 1e-5, errors


@pytest.mark.parametrize("shards", [1, 2, 3, 8])
def test_unshuffle_undoes_shuffle(shards):
    x = jnp.arange(2 * 48 * 3).reshape(2, 48, 3)
    there = zigzag.shuffle(x, shards)
    assert (zigzag.unshuffle(there, shards) == x).all() and (
        zigzag.shuffle(zigzag.unshuffle(x, shards), shards) == x
    ).all()
    pieces = np.asarray(there[0, :, 0]).reshape(shards, 2, -1)[:, :, 0] // (3 * 48 // (2 * shards))
    assert (pieces.sum(axis=1) == 2 * shards - 1).all()  # device i holds pieces i and 2N-1-i


def test_a_row_that_cannot_be_cut_is_refused():
    with pytest.raises(ValueError, match="a row of 20 tokens cannot be cut into 8 equal pieces"):
        zigzag.shuffle(jnp.zeros((1, 20)), 4)


def pairs_by_shard_and_hop(order, shards: int, case) -> np.ndarray:
    """Visited pairs of blocks [shard of queries, shard of keys]."""
    parts = [
        chunked.Tokens(*(jnp.asarray(part) for part in pair))
        for pair in zip(*(np.split(np.asarray(order(x)), shards, axis=1) for x in case[3:]), strict=True)
    ]
    return np.array([[int(chunked.visited_pairs(queries, keys)) for keys in parts] for queries in parts])


def test_zigzag_gives_every_device_the_same_work():
    shards = 4
    case = packed_case(1, 16 * chunked.BLOCK, 1, 1, 4, 1)
    case = case._replace(segment_ids=jnp.ones_like(case.segment_ids), positions=jnp.arange(16 * chunked.BLOCK)[None])
    plain = pairs_by_shard_and_hop(lambda x: x, shards, case)
    balanced = pairs_by_shard_and_hop(lambda x: zigzag.shuffle(x, shards), shards, case)
    assert plain.sum() == balanced.sum() == 16 * 17 // 2  # no block of work more than the causal half
    assert plain.sum(axis=1).tolist() == [10, 26, 42, 58]
    assert balanced.sum(axis=1).tolist() == [34] * shards
    # Hops go in step: at each, every device has the same work too.
    for hop in range(1, shards):
        assert {int(balanced[i, (i - hop) % shards]) for i in range(shards)} == {8}


def test_ulysses_needs_whole_heads():
    assert ulysses.splits(8, 2, 4) and ulysses.splits(8, 2, 8) and ulysses.splits(96, 8, 2)
    assert not ulysses.splits(4, 2, 8) and not ulysses.splits(6, 3, 2 * 2)
