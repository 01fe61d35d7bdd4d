import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intellect_jax.kernels.products import TERMS, in_parts, plain

SHAPES = [
    ((7, 4 * TERMS), (4 * TERMS, 5, 3), 1),
    ((2, 3, 9, 64), (9, 64, 5), 2),
    ((7, 2 * TERMS + 1), (2 * TERMS + 1, 5), 1),
]


def factors(x_shape, w_shape):
    """A few of the features are large, as in language models."""
    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=shape).astype(np.float32) for shape in (x_shape, w_shape))
    x[..., ::50] *= 30
    return x, w


@pytest.mark.parametrize(("x_shape", "w_shape", "axes"), SHAPES)
def test_products_in_parts_and_their_gradients_are_those_in_one_piece(x_shape, w_shape, axes):
    x, w = factors(x_shape, w_shape)
    exact = np.tensordot(x.astype(np.float64), w.astype(np.float64), axes)
    np.testing.assert_allclose(in_parts(x, w, axes), exact, rtol=1e-5, atol=1e-3)

    def both(product):
        return jax.grad(lambda x, w: jnp.sum(jnp.sin(product(x, w, axes) / 100)), argnums=(0, 1))(x, w)

    for ours, right in zip(both(in_parts), both(plain), strict=True):
        np.testing.assert_allclose(ours, right, rtol=1e-4, atol=1e-4)


def test_float32_products_in_parts_round_less():
    x, w = factors((512, 12 * TERMS), (12 * TERMS, 512))
    exact = x.astype(np.float64) @ w.astype(np.float64)
    ours, one = (
        np.sqrt(np.mean((np.asarray(f(x, w, 1)) - exact) ** 2)) for f in (jax.jit(in_parts, static_argnums=2), plain)
    )
    assert ours < 0.75 * one


def test_products_of_fewer_bits_are_left_as_they_are():
    x, w = (jnp.asarray(a, jnp.bfloat16) for a in factors((64, 8 * TERMS), (8 * TERMS, 64)))
    count = str(jax.make_jaxpr(in_parts, static_argnums=2)(x, w, 1)).count("dot_general")
    assert count == 1 and in_parts(x, w, 1).dtype == jnp.bfloat16
