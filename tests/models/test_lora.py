"""Adapters beside frozen kernels: the same policy as with merged weights, and gradients of the factors alone."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intellect_jax.bridge.policy import Policy
from intellect_jax.models.lora import adapter_axes, init_adapter, with_adapter
from intellect_jax.models.lora_shape import TARGETS, Lora, factor_paths
from intellect_jax.trees import leaf
from tests.policies import SMALL, loss_function, quick_jit, random_params, relative_error, with_random_adapter

TOKENS = np.random.default_rng(3).integers(0, SMALL.vocab_size, (4, 12)).astype(np.int32)
LORA = Lora(4, 6.0, TARGETS)
SHORT = replace(SMALL, num_hidden_layers=2)  # a dense layer and a mixture of experts


def merged_slowly(params, factors, lora):
    """Explicit W + alpha / rank · A B of every adapted array, one layer and expert at a time, in plain einsums."""

    def merge(path, kernel):
        keys = tuple(key.key for key in path)
        if not lora.adapts(keys):
            return kernel
        a, b = (leaf(factors, place) for place in factor_paths(keys))
        equation = "leir,lero->leio" if "experts" in keys else "lhcr,lrd->lhcd" if keys[-2] == "o" else None
        if equation is None:
            equation = "lir,lrhc->lihc" if kernel.ndim == 4 else "lir,lro->lio"
        return kernel + lora.alpha / lora.rank * jnp.einsum(equation, a, b)

    return jax.tree_util.tree_map_with_path(merge, params)


@pytest.mark.slow
def test_loss_and_gradients_are_those_through_merged_weights():
    cfg, lora = SHORT, LORA
    policy = with_random_adapter(Policy(jax.device_put(random_params(cfg)), cfg), lora)
    loss, targets = loss_function(cfg), np.roll(TOKENS, 1)

    def fast(factors):
        return loss(with_adapter(policy.params, policy.adapter._replace(factors=factors)), TOKENS, targets)

    def slow(factors):
        return loss(merged_slowly(policy.params, factors, lora), TOKENS, targets)

    mine, gradients = quick_jit(jax.value_and_grad(fast))(policy.adapter.factors)
    right, expected = quick_jit(jax.value_and_grad(slow))(policy.adapter.factors)
    np.testing.assert_allclose(mine, right, rtol=1e-5)
    for (path, gradient), other in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(expected), strict=True
    ):
        assert np.linalg.norm(other) > 0
        assert relative_error(gradient, other) < 1e-4, jax.tree_util.keystr(path)


@pytest.mark.slow
def test_fresh_adapters_change_nothing_and_depend_on_the_seed_alone():
    params = jax.device_put(random_params(SHORT))
    factors = init_adapter(SHORT, LORA, seed=1)
    policy = Policy(params, SHORT)
    adapted = with_random_adapter(policy, LORA)
    fresh = Policy(params, SHORT, None, adapted.adapter._replace(factors=factors))
    np.testing.assert_array_equal(fresh.logits(TOKENS), policy.logits(TOKENS))
    assert not np.array_equal(adapted.logits(TOKENS), policy.logits(TOKENS))
    for again, other in ((init_adapter(SHORT, LORA, 1), True), (init_adapter(SHORT, LORA, 2), False)):
        a, b = (tree["moe_layers"]["attention"]["q"]["lora"]["a"] for tree in (factors, again))
        assert np.array_equal(a, b) == other


@pytest.mark.slow
def test_a_is_uniform_as_in_peft():
    """kaiming_uniform with a = sqrt(5) is a bound of 1 / sqrt(fan in), of each expert's own input."""
    factors = init_adapter(SMALL, Lora(16, 1.0, TARGETS), 0)["moe_layers"]
    for a, fan_in in (
        (factors["attention"]["q"]["lora"]["a"], SMALL.hidden_size),
        (factors["attention"]["o"]["lora"]["a"], SMALL.num_attention_heads * SMALL.head_dim),
        (factors["moe"]["experts"]["lora"]["down_a"], SMALL.moe_intermediate_size),
    ):
        bound = fan_in**-0.5
        assert 0.98 * bound < np.abs(a).max() <= bound
        np.testing.assert_allclose(a.std(), bound / 3**0.5, rtol=0.1)


def test_the_tree_holds_what_the_targets_ask_for_sharded_like_the_kernels():
    axes = adapter_axes(SMALL, Lora(4, 1.0, ("attention", "experts")))
    assert axes["moe_layers"]["moe"].keys() == {"experts"} and axes["dense_layers"].keys() == {"attention"}
    assert axes["moe_layers"]["attention"]["o"]["lora"] == {
        "a": ("layers", "heads", "head_dim", None),
        "b": ("layers", None, "embed"),
    }
    assert axes["moe_layers"]["moe"]["experts"]["lora"]["gate_up_a"] == ("layers", "expert", "embed", None)
    assert axes["moe_layers"]["moe"]["experts"]["lora"]["up_b"] == ("layers", "expert", None, "expert_mlp")
