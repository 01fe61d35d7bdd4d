import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intellect_jax.kernels.logprobs import member_logprobs, token_logprobs

WIDTH, VOCABULARY = 8, 11


def inputs(rows, length, share, seed=0):
    """hidden, kernel, targets, temperature, members."""
    rng = np.random.default_rng(seed)
    hidden, kernel = rng.normal(size=(rows, length, WIDTH)), rng.normal(size=(WIDTH, VOCABULARY))
    targets, temperature = rng.integers(0, VOCABULARY, (rows, length)), rng.uniform(0.5, 2, (rows, length))
    members = rng.random((rows, length)) < share
    return tuple(map(jnp.asarray, (hidden.astype("f"), kernel.astype("f"), targets, temperature.astype("f"), members)))


@pytest.mark.parametrize("length", [1, 31, 32, 70])
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_members_get_what_the_plain_reference_says_gradients_included(length, share):
    hidden, kernel, targets, temperature, members = inputs(3, length, share)
    weights = jnp.cos(jnp.arange(3 * length, dtype=jnp.float32)).reshape(3, length)

    def loss(function, hidden, kernel):
        logprobs, entropy = function(hidden, kernel)
        return jnp.sum(weights * (logprobs + 0.3 * entropy)), (logprobs, entropy)

    def ours(hidden, kernel):
        return member_logprobs(hidden, kernel, targets, temperature, members)

    def plain(hidden, kernel):
        return tuple(jnp.where(members, x, 0) for x in token_logprobs(hidden @ kernel, targets, temperature))

    got, expected = (jax.grad(loss, (1, 2), has_aux=True)(f, hidden, kernel) for f in (ours, plain))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


def test_whole_rows_of_logits_never_exist():
    """The temporaries of forward and backward pass are far below one array of all logits."""
    rows, length, vocabulary = 2, 1024, 5000
    hidden, kernel = jnp.ones((rows, length, WIDTH)), jnp.ones((WIDTH, vocabulary))
    targets, members = jnp.zeros((rows, length), int), jnp.ones((rows, length), bool)

    def loss(hidden, kernel):
        return member_logprobs(hidden, kernel, targets, jnp.ones((rows, length)), members)[0].sum()

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(hidden, kernel).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * rows * length * vocabulary / 4
