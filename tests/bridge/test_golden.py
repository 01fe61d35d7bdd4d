"""Logits and gradients equal those that transformers computed; golden/ is written by make_golden.py."""

import jax
import numpy as np
import pytest

from intellect_jax.bridge.huggingface import to_hf
from tests.bridge.make_golden import FOLDER, direction
from tests.policies import CONFIGS, logits_function, loss_and_gradients, random_params

# Between them every branch of the models; the others are held to in the oracle tests, live. Compiling takes most of the
# time here, and gradients take most of it.
FORWARD = [
    *("qk_norm", "grouped_scaled", "not_renormalised", "no_shared", "two_shared", "tied_without_bias", "all_moe"),
    *("two_dense", "rope", "yarn", "qwen3_moe_mlp_only_sparse_step", "qwen3_moe_one_expert", "qwen3_tied_bias"),
    *("qwen3_llama3", "llama_tied_linear", "llama_bias_yarn"),
]
GRADIENTS = [pytest.param("qwen3_moe_mlp_only", marks=pytest.mark.slow), "llama_llama3"]


@pytest.mark.parametrize("name", FORWARD)
def test_logits_equal_transformers(name):
    golden, cfg = np.load(FOLDER / f"{name}.npz"), CONFIGS[name]
    tokens = golden["tokens"].astype(np.int32)
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    mine = logits_function(cfg)(random_params(cfg), tokens, positions, np.ones_like(tokens))
    assert np.abs(mine - golden["logits"]).max() <= 1e-4


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_equal_transformers(name):
    golden, cfg = np.load(FOLDER / f"{name}.npz"), CONFIGS[name]
    params = jax.device_put(random_params(cfg))
    loss, gradients = loss_and_gradients(cfg)(params, golden["tokens"], golden["targets"])
    np.testing.assert_allclose(loss, golden["loss"], rtol=1e-5)
    mine = {f"grad/{tensor}": value for tensor, value in to_hf(gradients, cfg)}
    for tensor, expected in zip(golden["names"], golden["along"], strict=True):
        size = np.linalg.norm(mine[tensor])
        along = np.vdot(mine[tensor], direction(tensor, mine[tensor].shape))
        assert abs(along - expected) <= 1e-4 * size, tensor
