import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intellect_jax.kernels.grouped_matmul import expert_mlp, expert_mlp_reference, plan

D, F = 12, 20


def inputs(tokens, experts, k, seed, skew):
    keys = jax.random.split(jax.random.key(seed), 6)
    scores = jax.random.normal(keys[0], (tokens, experts)) - skew * jnp.arange(experts)
    ids = jax.lax.top_k(scores, k)[1]
    normal = jax.random.normal
    return (
        normal(keys[1], (tokens, D)),
        ids,
        jax.nn.softmax(normal(keys[2], (tokens, k))),
        normal(keys[3], (experts, D, F)),
        normal(keys[4], (experts, D, F)),
        normal(keys[5], (experts, F, D)),
    )


mine, reference = jax.jit(expert_mlp), jax.jit(expert_mlp_reference)


@pytest.mark.parametrize(("tokens", "experts", "k"), [(1, 3, 2), (70, 9, 4), (33, 1, 1), (64, 8, 2)])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), skew=st.sampled_from([0.0, 1.0, 100.0]))  # 100: all tokens on the first experts
def test_equals_computing_every_expert(tokens, experts, k, seed, skew):
    args = inputs(tokens, experts, k, seed, skew)
    np.testing.assert_allclose(mine(*args), reference(*args), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("skew", [0.0, 1.0, 100.0])
def test_gradients_equal_those_of_the_reference(skew):
    x, ids, *rest = inputs(50, 8, 2, seed=1, skew=skew)
    cotangent = jax.random.normal(jax.random.key(9), x.shape)

    def grads(function):
        return jax.grad(lambda x, *rest: jnp.sum(function(x, ids, *rest) * cotangent), argnums=range(5))(x, *rest)

    for grad, expected in zip(grads(mine), grads(reference), strict=True):
        np.testing.assert_allclose(grad, expected, rtol=1e-4, atol=1e-3)


def test_every_assignment_gets_a_row_of_its_own_in_a_block_of_its_expert():
    ids = jax.random.randint(jax.random.key(0), (33, 3), 0, 5)
    layout = plan(ids, 5, 8)
    rows = np.asarray(layout.destination).reshape(-1)
    assert len(set(rows.tolist())) == rows.size
    np.testing.assert_array_equal(np.asarray(layout.block_expert)[rows // 8], np.asarray(ids).reshape(-1))
    np.testing.assert_array_equal(np.asarray(layout.source)[rows], np.repeat(np.arange(33), 3))


def test_work_grows_with_the_tokens_routed_not_with_the_experts():
    rows = [plan(jnp.zeros((4096, 2), jnp.int32), experts, 64).source.size for experts in (8, 64)]
    assert rows[1] <= 1.6 * rows[0]
