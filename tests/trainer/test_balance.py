"""Loads of experts are counted over real tokens, and the routers' biases follow them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intellect_jax.bridge.policy import Policy
from intellect_jax.bridge.save import policy_tensors
from intellect_jax.config import default_config
from intellect_jax.models.transformer import forward
from intellect_jax.trainer.balance import balance_metrics, balanced, expert_loads
from intellect_jax.trainer.optimizer import make_optimizer
from intellect_jax.trainer.step import StepOptions, TrainState, make_train_step
from tests.bridge.mesh_run import make_batch
from tests.policies import SMALL, quick_jit, random_params

POLICY = dataclasses.replace(SMALL, num_hidden_layers=2, first_k_dense_replace=0)  # one scan, quick to compile
BIAS = ("moe_layers", "moe", "router", "bias")


def at(tree, path):
    for key in path:
        tree = tree[key]
    return np.asarray(tree)


def test_loads_count_the_choices_of_real_tokens_in_each_layer():
    rng = np.random.default_rng(0)
    routed, real = rng.integers(0, 5, (3, 7, 2, 4)).astype(np.int16), rng.random((3, 7)) < 0.6
    expected = [np.bincount(routed[:, :, layer][real].reshape(-1), minlength=5) for layer in range(2)]
    np.testing.assert_array_equal(expert_loads(jnp.asarray(routed), jnp.asarray(real), 5), expected)


@pytest.mark.parametrize(
    ("loads", "violation", "entropy"),
    [
        ([[3, 3, 3, 3]], 0.0, 1.0),
        ([[0, 8, 0, 0]], 3.0, 0.0),
        ([[4, 4, 0, 0], [2, 2, 2, 2]], 0.5, 0.75),  # the mean over layers
        ([[0, 0, 0, 0]], 0.0, 0.0),
    ],
)
def test_metrics_of_known_loads(loads, violation, entropy):
    metrics = balance_metrics(jnp.asarray(loads, jnp.float32))
    assert metrics["router_max_violation"] == pytest.approx(violation)
    assert metrics["router_load_entropy"] == pytest.approx(entropy)


def test_a_policy_without_experts_has_no_metrics():
    assert balance_metrics(jnp.zeros((0, 0))) == {}


@pytest.mark.slow
def test_one_step_moves_the_bias_by_the_rate_and_nothing_else_touches_it():
    config = default_config()
    config.model.compute_dtype, config.trainer.router_bias_rate = "float32", 0.01
    config.trainer.optimizer.update(weight_decay=0.1, clip_norm=1e-3)
    optimizer = make_optimizer(config.trainer.optimizer)
    params, batch = jax.tree.map(jnp.asarray, random_params(POLICY)), make_batch(1).arrays
    start = TrainState(params, optimizer.init(params))
    step = quick_jit(make_train_step(POLICY, StepOptions.from_config(config), optimizer))
    state, metrics = step(start, batch, 0.1)

    routed = quick_jit(lambda *args: forward(params, POLICY, *args).routed_experts)
    real = np.concatenate(batch["segment_ids"]) > 0
    chosen = np.asarray(routed(*(np.concatenate(batch[name]) for name in ("tokens", "positions", "segment_ids"))))[real]
    loads = np.stack([np.bincount(layer.reshape(-1), minlength=8) for layer in np.moveaxis(chosen, 1, 0)])
    moved = np.float32(0.01) * np.sign(loads.mean(-1, keepdims=True) - loads)
    assert np.abs(moved).max() > 0
    np.testing.assert_allclose(at(state.params, BIAS), at(params, BIAS) + moved, rtol=1e-6)
    leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
    moments = [leaf for path, leaf in leaves if jax.tree_util.keystr(path).endswith("['router']['bias']")]
    assert len(moments) == 2 and not np.any(moments)
    assert metrics["router_max_violation"] == pytest.approx((loads.max(-1) / loads.mean(-1) - 1).mean(), rel=1e-5)


def test_the_bias_is_published_as_it_is():
    params = random_params(POLICY)
    tensors = dict(policy_tensors(Policy(params, POLICY, None), "bfloat16"))
    biases = [value for name, value in sorted(tensors.items()) if name.endswith("e_score_correction_bias")]
    np.testing.assert_array_equal(np.stack(biases), at(params, BIAS))


def test_repeated_moves_balance_a_skewed_router():
    rng = np.random.default_rng(0)
    scores = jax.nn.sigmoid(jnp.asarray(rng.normal(size=(512, 8)) + np.linspace(-2, 2, 8), jnp.float32))
    real = jnp.ones((1, 512), bool)

    @jax.jit
    def move(params):
        ids = jax.lax.top_k(scores + params["router"]["bias"], 2)[1]
        loads = expert_loads(ids[None, :, None], real, 8)
        return balanced(params, loads, 0.005), balance_metrics(loads)["router_max_violation"]

    params, violations = {"router": {"bias": jnp.zeros((1, 8))}}, []
    for _ in range(200):
        params, violation = move(params)
        violations.append(float(violation))
    assert violations[0] > 1.0 and max(violations[-20:]) < 0.15
