"""Attention through page tables: the reference against plain attention, a TPU's kernel against the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from intellect_jax.kernels.attention import attend
from intellect_jax.kernels.attention.paged import attention


def made_up(rows, queries, heads, kv_heads, width, pages, size, dtype=np.float32):
    rng = np.random.default_rng(0)
    count = rows * pages + 1
    q = rng.normal(size=(rows, queries, heads, width)).astype(dtype)
    k, v = (rng.normal(size=(kv_heads, count, size, width)).astype(dtype) for _ in range(2))
    tables = rng.permutation(np.arange(1, count)).reshape(rows, pages).astype(np.int32)
    return q, k, v, tables


def test_the_reference_equals_plain_attention_over_the_same_tokens():
    q, k, v, tables = made_up(rows=3, queries=2, heads=6, kv_heads=2, width=8, pages=4, size=4)
    positions = np.array([[0, 1], [5, 6], [14, 15]], np.int32)
    keys, values = (np.moveaxis(x[:, tables].reshape(2, 3, 16, 8), 0, 2) for x in (k, v))
    mask = np.arange(16) <= positions[:, :, None]
    expected = attend(jnp.asarray(q), jnp.asarray(keys), jnp.asarray(values), jnp.asarray(mask))
    np.testing.assert_allclose(attention(q, k, v, tables, positions), expected, atol=1e-5)


@pytest.mark.parametrize("heads", [4, 16])
def test_the_kernel_equals_the_reference(heads):
    """Interpreted, as there is no TPU; its matrix products are of bfloat16, as they are there."""
    q, k, v, tables = made_up(rows=3, queries=1, heads=heads, kv_heads=2, width=128, pages=4, size=8)
    positions = np.array([[0], [13], [31]], np.int32)
    expected = attention(q, k, v, tables, positions)
    with pltpu.force_tpu_interpret_mode():
        mine = jax.jit(lambda *inputs: attention(*inputs, kernel=True))(q, k, v, tables, positions)
    np.testing.assert_allclose(mine, expected, atol=2e-2)
