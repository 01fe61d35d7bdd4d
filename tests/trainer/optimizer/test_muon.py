"""Muon against itself written out plainly: one matrix at a time, in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intellect_jax.config import default_config
from intellect_jax.trainer.optimizer import make_optimizer
from intellect_jax.trainer.optimizer.muon import newton_schulz
from tests.policies import CONFIGS, quick_jit, random_params, relative_error

STEPS, MOMENTUM, DECAY = 5, 0.9, 0.1


def orthogonal(m):
    a, b, c = 3.4445, -4.7750, 2.0315
    x = m / np.linalg.norm(m)
    for _ in range(STEPS):
        s = x @ x.T
        x = a * x + (b * s + c * s @ s) @ x
    return x


def matrices_of(path, array):
    """Views of every matrix that Muon should see in a parameter, as [rows, columns]; none: AdamW's."""
    if {"embed", "head", "router"} & set(path) or path[-1] in ("bias", "scale"):
        return []
    flat = array.reshape(-1, *array.shape[2:]) if "experts" in path else array
    if "attention" in path:
        rows = array.shape[1] * array.shape[2] if path[-2] == "o" else array.shape[1]
        flat = flat.reshape(len(flat), rows, -1)
    return list(flat)


def gradients(params, count, seed=1):
    rng = np.random.default_rng(seed)
    return [jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params) for _ in range(count)]


@pytest.mark.parametrize("nesterov", [True, False])
def test_steps_equal_muon_written_out(nesterov):
    params = random_params(CONFIGS["qk_norm"])
    opt = default_config().trainer.optimizer
    opt.update(name="muon", clip_norm=1e9, weight_decay=DECAY)
    opt.muon.update(momentum=MOMENTUM, nesterov=nesterov, steps=STEPS, dtype="float32")
    optimizer = make_optimizer(opt)
    update, state = quick_jit(optimizer.update), optimizer.init(params)
    steps = gradients(params, 3)
    for grads in steps:
        updates, state = update(grads, state, params)
    checked = 0
    for (path, update_), param, *history in zip(
        jax.tree_util.tree_leaves_with_path(updates), jax.tree.leaves(params), *map(jax.tree.leaves, steps), strict=True
    ):
        keys = [key.key for key in path]
        momentum = np.zeros(param.shape)
        for grad in history:
            momentum = MOMENTUM * momentum + grad.astype(np.float64)
        if nesterov:
            momentum = history[-1] + MOMENTUM * momentum
        mine = matrices_of(keys, np.asarray(update_))
        for m, theirs, weight in zip(mine, matrices_of(keys, momentum), matrices_of(keys, param), strict=True):
            expected = 0.2 * np.sqrt(max(theirs.shape)) * orthogonal(theirs) + DECAY * weight
            assert relative_error(m, expected) < 1e-4, keys
            checked += 1
    assert checked == 3 * 4 + 3 + 2 * 3 * (8 + 1), "attention, one dense MLP, and of two layers all experts"


@pytest.fixture(scope="module")
def iterate():
    return quick_jit(partial(newton_schulz, steps=5))


def test_zeros_stay_zeros_and_the_rest_becomes_orthogonal(iterate):
    x = jnp.zeros((2, 16, 48)).at[1].set(np.random.default_rng(0).normal(size=(16, 48)))
    y = np.asarray(iterate(x))
    assert not y[0].any()
    assert np.abs(np.linalg.svd(y[1], compute_uv=False) - 1).max() < 0.4


def test_bfloat16_iterations_point_the_same_way(iterate):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 48)), jnp.float32)
    narrow = iterate(x.astype(jnp.bfloat16))
    assert narrow.dtype == jnp.bfloat16
    assert relative_error(np.asarray(narrow, np.float32), np.asarray(iterate(x))) < 0.1
