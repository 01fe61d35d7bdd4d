"""The products in C++ against numpy in float64, at the borders of tiles, panels, sums and tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intellect_jax.kernels.grouped_matmul import native
from tests.kernels.on_cpu import require_kernels


@pytest.fixture(autouse=True, scope="module")
def kernels():
    require_kernels()


# Around whole vectors, panels, tiles, sums of products and tasks, and anything.
EDGES = [1, 2, 5, 6, 7, 15, 16, 17, 31, 32, 33, 48, 49, 63, 64, 65, 96, 127, 128, 129, 192, 193, 255, 256, 257, 320]
SIZE = st.one_of(st.sampled_from(EDGES), st.integers(1, 400))


def exactly(kind, left, right, sizes):
    """By the float64 matrix of each group."""
    ends = np.cumsum(sizes)
    parts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    if kind == "products":
        return np.stack([left[part].T @ right[part] for part in parts])
    matrices = right.transpose(0, 2, 1) if kind == "rows_transposed" else right
    out = np.zeros((left.shape[0], matrices.shape[2]))
    for part, matrix in zip(parts, matrices, strict=True):
        out[part] = left[part] @ matrix
    return out


def made_up(rng, *shape):
    """Small whole numbers: every sum of their products is exact in float32, so that one term too many or too few, or
    one of another place, shows as what it is."""
    return rng.integers(-8, 9, shape).astype(np.float32)


@pytest.mark.parametrize("kind", ["rows", "rows_transposed", "products"])
@settings(max_examples=60, deadline=None)
@given(rows=SIZE, inner=SIZE, outer=SIZE, groups=st.sampled_from([1, 1, 2, 5, 9]), seed=st.integers(0, 999))
def test_every_number_is_right_at_any_size(kind, rows, inner, outer, groups, seed):
    rng = np.random.default_rng(seed)
    filled = rows if rng.random() < 0.5 else int(rng.integers(0, rows + 1))
    sizes = rng.multinomial(filled, rng.dirichlet(np.full(groups, 0.5)))
    matrix = made_up(rng, groups, inner, outer)
    left, right = {
        "rows": (made_up(rng, rows, inner), matrix),
        "rows_transposed": (made_up(rng, rows, outer), matrix),
        "products": (made_up(rng, rows, inner), made_up(rng, rows, outer)),
    }[kind]
    if kind != "products":
        left[filled:] = np.nan  # past the groups: never read
    found = jax.jit(getattr(native, kind))(left, right, jnp.asarray(sizes, jnp.int32))
    expected = exactly(kind, np.nan_to_num(left).astype(np.float64), right.astype(np.float64), sizes)
    np.testing.assert_array_equal(found, expected)


def test_long_sums_round_less_than_one_after_the_other():
    """Terms that all add up, the worst case for a long sum; against float64."""
    rng = np.random.default_rng(0)
    x, w = rng.uniform(size=(64, 8192)).astype(np.float32), rng.uniform(size=(1, 8192, 64)).astype(np.float32)
    exact = x.astype(np.float64) @ w[0].astype(np.float64)
    found = jax.jit(native.rows)(x, w, jnp.array([64], jnp.int32))
    one_sum = np.zeros((64, 64), np.float32)
    for k in range(x.shape[1]):
        one_sum += x[:, k, None] * w[0, k]
    error = [np.abs(sums / exact - 1).max() for sums in (np.asarray(found), one_sum)]
    assert error[0] < 1e-6 and error[0] < error[1] / 4, error


def test_the_same_numbers_give_the_same_bits():
    """However the threads share the work."""
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(3000, 96)).astype(np.float32), rng.normal(size=(7, 96, 80)).astype(np.float32)
    sizes = jnp.asarray([100, 0, 900, 1, 1000, 999, 0], jnp.int32)
    run = jax.jit(native.rows)
    first = np.asarray(run(x, w, sizes))
    for _ in range(20):
        np.testing.assert_array_equal(run(x, w, sizes), first)
