"""Model FLOPs against the parameters that a token meets, the attention mask, and the products of a traced step."""

from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from intellect_jax.models.config import ModelConfig
from intellect_jax.models.flops import Work, forward_flops, step_flops
from intellect_jax.models.transformer import abstract_params
from tests.policies import CONFIGS, loss_function, of_family

GLM_AIR = ModelConfig(
    vocab_size=151552,
    hidden_size=4096,
    num_hidden_layers=46,
    num_attention_heads=96,
    num_key_value_heads=8,
    head_dim=128,
    intermediate_size=10944,
    moe_intermediate_size=1408,
    n_routed_experts=128,
    num_experts_per_tok=8,
    n_shared_experts=1,
    first_k_dense_replace=1,
)


def active_weights(cfg: ModelConfig) -> int:
    """Matrix entries that one token meets on its way to a log-probability."""
    count = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_params(cfg)):
        keys = [key.key for key in path]
        if keys[-1] in ("scale", "bias") or (keys[0] == "embed" and not cfg.tie_word_embeddings):
            continue
        size = prod(leaf.shape)
        count += size * cfg.num_experts_per_tok // cfg.n_routed_experts if "experts" in keys else size
    return count


@pytest.mark.parametrize("name", CONFIGS)
def test_a_token_costs_two_flops_for_every_weight_that_it_meets(name):
    parts = forward_flops(CONFIGS[name], Work(tokens=1, pairs=0, scored=1))
    assert sum(parts.values()) == 2 * active_weights(CONFIGS[name])


def test_glm_4_5_air_has_twelve_billion_active_parameters():
    parts = forward_flops(GLM_AIR, Work(tokens=1, pairs=0, scored=0))
    assert sum(parts.values()) / 2 == pytest.approx(12.2e9, rel=0.01)


def test_work_of_a_packed_batch_is_what_its_mask_allows():
    segments = np.array([[[1, 1, 1, 2, 2, 0], [1, 0, 0, 0, 0, 0]]])
    positions = np.array([[[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]]])
    members = np.array([[[0, 1, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0]]], bool)
    same = (segments[..., :, None] == segments[..., None, :]) & (segments[..., None] > 0)
    seen = same & (positions[..., :, None] >= positions[..., None, :])
    work = Work.of_batch({"segment_ids": segments, "positions": positions, "loss_mask": members})
    assert work == Work(tokens=6, pairs=int(seen.sum()), scored=3) == Work.of_lengths([3, 2, 1])


def products(jaxpr) -> int:
    """FLOPs of every matrix product of a traced function; loops times their trips."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            contracted = prod(eqn.invars[0].aval.shape[i] for i in eqn.params["dimension_numbers"][0][0])
            total += 2 * contracted * prod(eqn.outvars[0].aval.shape)
        for inner in jaxprs_in_params(eqn.params):
            total += products(inner) * eqn.params.get("length", 1)
    return total


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_a_step_costs_three_forwards(family):
    """Traced programs attend to every pair, so the model is asked for all of them, too."""
    cfg, tokens = of_family(family), jnp.zeros((2, 16), jnp.int32)
    traced = jax.make_jaxpr(jax.grad(loss_function(cfg)))(abstract_params(cfg), tokens, tokens)
    assert step_flops(cfg, Work(tokens=32, pairs=2 * 16 * 16, scored=32)) == products(traced.jaxpr)


def test_frozen_weights_spare_their_gradients():
    work = Work.of_lengths([8, 8])
    parts = forward_flops(GLM_AIR, work)
    assert (
        step_flops(GLM_AIR, work) - step_flops(GLM_AIR, work, frozen=True) == sum(parts.values()) - parts["attention"]
    )
