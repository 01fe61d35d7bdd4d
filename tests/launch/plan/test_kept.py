"""Activations that real programs keep for their backward pass."""

import jax
import jax.numpy as jnp

from launch.plan import hlo
from launch.plan.kept import kept_bytes
from tests.policies import QUICK

LAYERS, ROWS, WIDTH = 6, 40, 32


def kept(checkpointed):
    def layer(x, w):
        return jnp.tanh(jnp.tanh(x @ w) * 2) @ w, None

    def loss(weights, x):
        return jax.lax.scan(jax.checkpoint(layer) if checkpointed else layer, x, weights)[0].sum()

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((LAYERS, WIDTH, WIDTH), (ROWS, WIDTH))]
    text = jax.jit(jax.grad(loss)).lower(*shapes).compile(compiler_options=QUICK).as_text()
    return kept_bytes(hlo.parse(text), {(LAYERS, WIDTH, WIDTH)})


def test_what_a_scan_keeps_is_counted_and_gradients_are_not():
    whole = LAYERS * ROWS * WIDTH * 4  # one array of activations a layer
    assert kept(checkpointed=True) == whole  # a layer's input
    assert 2 * whole <= kept(checkpointed=False) <= 5 * whole  # inputs, both tanh, and what their gradients read
