"""Routing written out, and experts that are given instead of chosen."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from intellect_jax.models.moe import Router
from tests.policies import SMALL

CFG = dataclasses.replace(SMALL, routed_scaling_factor=1.7)


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_given_experts_are_weighted_by_the_scores_of_this_router(kind):
    with nnx.use_eager_sharding(False):
        router = Router(dataclasses.replace(CFG, router=kind), nnx.Rngs(0))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, CFG.hidden_size)).astype(np.float32)
    given = np.argsort(rng.random((2, 5, CFG.n_routed_experts)))[..., : CFG.num_experts_per_tok].astype(np.int16)
    given[1, 2:] = -1  # these the router chooses itself
    if kind == "sigmoid":
        router.bias.set_value(router.bias.get_value() + rng.normal(size=CFG.n_routed_experts).astype(np.float32))
    ids, weights = jax.tree.map(np.asarray, router(x, given))

    logits = x.astype(np.float64) @ np.asarray(router.kernel.get_value())
    scores = 1 / (1 + np.exp(-logits)) if kind == "sigmoid" else np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    biased = scores + (np.asarray(router.bias.get_value()) if kind == "sigmoid" else 0)
    own = np.argsort(-biased, axis=-1)[..., : CFG.num_experts_per_tok]
    expected = np.where(given >= 0, given, own)
    np.testing.assert_array_equal(ids, expected)
    taken = np.take_along_axis(scores, expected, axis=-1)  # the bias selects, and has no part in the weights
    np.testing.assert_allclose(weights, 1.7 * taken / taken.sum(-1, keepdims=True), rtol=1e-5)
