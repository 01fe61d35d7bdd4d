import json
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intellect_jax.kernels.grouped_matmul import (
    LowRank,
    expert_mlp,
    expert_mlp_reference,
    fits,
    grouped_matmul,
    grouped_matmul_reference,
    ragged,
    triton,
    tuning,
)
from intellect_jax.kernels.grouped_matmul.layout import layout
from tests.kernels.on_cpu import WAYS, both, computing
from tests.policies import quick_jit

D, F = 12, 20


def with_gradients(function, x, w, sizes, cotangent):
    y, gradients = jax.vjp(lambda x, w: function(x, w, sizes), x, w)
    return y, *gradients(cotangent)


mine = both(lambda *args: with_gradients(grouped_matmul, *args))
plain = quick_jit(lambda *args: with_gradients(grouped_matmul_reference, *args))


def group_sizes(rows, groups, seed, spread):
    """Random sizes: everything in one group, some empty, none in any, or rows left over."""
    rng = np.random.default_rng(seed)
    filled = rows if rng.random() < 0.5 else int(rng.integers(0, rows + 1))
    share = rng.dirichlet(np.full(groups, spread))
    return jnp.asarray(rng.multinomial(filled, share), jnp.int32)


def rows_and_matrices(rows, inner, outer, groups, dtype, seed):
    rng = np.random.default_rng(seed)
    shapes = (rows, inner), (groups, inner, outer), (rows, outer)
    x, w, cotangent = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
    return x, w, cotangent


def assert_close(got, expected, tolerance):
    """Relative L2 of every array; where little is left of sums of numbers around 1, relative to 1 each."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.linalg.norm(a - b) <= tolerance * max(np.linalg.norm(b), b.size**0.5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1, 3, 2, 2), "float32"),
        ((33, 5, 7, 1), "float32"),
        ((131, 12, 20, 9), "float32"),
        ((75, 16, 9, 6), "bfloat16"),
    ],
)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), spread=st.sampled_from([100.0, 1.0, 0.05]))
def test_equals_multiplying_with_every_matrix_gradients_included(way, shape, dtype, seed, spread):
    x, w, cotangent = rows_and_matrices(*shape, dtype, seed)
    sizes = group_sizes(shape[0], shape[3], seed, spread)
    tolerance = 1e-6 if dtype == "float32" else 4e-3  # of sums in float32, rounded once to bfloat16's 8 bits
    assert_close(mine[way](x, w, sizes, cotangent), plain(x, w, sizes, cotangent), tolerance)


@pytest.mark.parametrize("way", WAYS)
def test_rows_past_the_groups_change_nothing(way):
    x, w, cotangent = rows_and_matrices(70, 12, 20, 3, "float32", seed=0)
    sizes = jnp.array([20, 0, 13], jnp.int32)
    expected = plain(x, w, sizes, cotangent)
    y, grad_x, grad_w = mine[way](x.at[33:].set(1e30), w, sizes, cotangent.at[33:].set(1e30))
    assert_close((y, grad_x, grad_w), expected, 1e-6)
    assert not y[33:].any() and not grad_x[33:].any()


@pytest.mark.parametrize("way", WAYS)
def test_time_grows_with_the_rows_filled_not_with_the_buffer(way):
    x, w, cotangent = rows_and_matrices(8192, 128, 128, 8, "float32", seed=0)
    step = jax.jit(lambda *args: with_gradients(grouped_matmul, *args))

    def seconds(rows):
        sizes = jnp.full(8, rows // 8, jnp.int32)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            jax.block_until_ready(step(x, w, sizes, cotangent))
            times.append(time.perf_counter() - start)
        return min(times)

    with computing(way):
        seconds(8)
    assert seconds(256) < 0.4 * seconds(8192)


def inputs(tokens, experts, k, seed, skew, here=None):
    """Arguments of ``expert_mlp``; experts from ``here`` on are elsewhere."""
    keys = jax.random.split(jax.random.key(seed), 6)
    scores = jax.random.normal(keys[0], (tokens, experts)) - skew * jnp.arange(experts)
    ids = jax.lax.top_k(scores, k)[1]
    here = experts if here is None else here
    normal = jax.random.normal
    return (
        normal(keys[1], (tokens, D)),
        jnp.minimum(ids, here),
        jax.nn.softmax(normal(keys[2], (tokens, k))),
        normal(keys[3], (here, D, F)),
        normal(keys[4], (here, D, F)),
        normal(keys[5], (here, F, D)),
    )


def mlp_with_gradients(function, x, ids, *rest):
    cotangent = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)
    y, gradients = jax.vjp(lambda x, *rest: function(x, ids, *rest), x, *rest)
    return y, gradients(cotangent)


my_mlp = both(lambda *args: mlp_with_gradients(expert_mlp, *args))
plain_mlp = quick_jit(lambda *args: mlp_with_gradients(expert_mlp_reference, *args))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("tokens", "experts", "k", "here"),
    [
        (1, 3, 2, 3),
        (51, 9, 3, 4),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [(70, 9, 4, 9), (33, 1, 1, 1)]),
    ],
)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 999), skew=st.sampled_from([0.0, 1.0, 100.0, -100.0]))  # 100: all on the first experts
def test_experts_equal_computing_every_one_gradients_included(way, tokens, experts, k, here, seed, skew):
    args = inputs(tokens, experts, k, seed, skew, here)
    assert_close(my_mlp[way](*args), plain_mlp(*args), 1e-5)


def test_low_rank_terms_equal_merged_weights():
    x, ids, weights, gate, up, down = inputs(20, 4, 2, seed=3, skew=0.0)
    keys = jax.random.split(jax.random.key(5), 5)
    shapes = (4, D, 3), (4, 3, F), (4, 3, F), (4, F, 3), (4, 3, D)
    terms = LowRank(*(jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)))
    merged = (
        gate + terms.gate_up_a @ terms.gate_b,
        up + terms.gate_up_a @ terms.up_b,
        down + terms.down_a @ terms.down_b,
    )
    got = quick_jit(expert_mlp)(x, ids, weights, gate, up, down, terms)
    assert_close(got, expert_mlp_reference(x, ids, weights, *merged), 1e-5)


def test_a_buffer_that_just_fits_changes_nothing_and_a_smaller_one_is_not_silent():
    args = inputs(40, 8, 2, seed=1, skew=0.0, here=3)
    needed = int((args[1] < 3).sum())
    expected = plain_mlp(*args)
    assert fits(args[1], 3, needed) and not fits(args[1], 3, needed - 1)

    def bounded(capacity):
        return quick_jit(lambda *args: mlp_with_gradients(lambda *a: expert_mlp(*a, capacity=capacity), *args))(*args)

    assert_close(bounded(needed), expected, 2e-6)
    assert np.isnan(bounded(needed - 1)[0]).any()


@pytest.mark.parametrize("capacity", [None, 70, 40])
def test_every_assignment_that_is_here_gets_a_row_of_its_own_by_expert(capacity):
    ids = jax.random.randint(jax.random.key(0), (33, 3), 0, 6)
    here = np.asarray(ids).reshape(-1) < 4
    plan = layout(ids, 4, capacity)
    rows, filled = plan.choice.size, min(here.sum(), capacity or ids.size)
    assert rows == (capacity or ids.size) and int(plan.sizes.sum()) == filled
    taken = np.asarray(plan.destination).reshape(-1)
    assert sorted(taken[taken < rows]) == list(range(filled))
    expert = np.repeat(np.arange(4), np.asarray(plan.sizes))
    np.testing.assert_array_equal(expert[taken[taken < rows]], np.asarray(ids).reshape(-1)[taken < rows])
    np.testing.assert_array_equal(np.asarray(plan.choice)[taken[taken < rows]], np.flatnonzero(taken < rows))
    assert (np.asarray(plan.source)[filled:] == 33).all()


@pytest.mark.parametrize("sizes", [(40, 0, 60, 21), (0, 121, 0, 0), (1, 0, 0, 17)])
def test_triton_kernels_equal_the_reference(sizes):
    """Interpreted: what they compute, not how fast."""
    tiles = triton.Tiles(32, 16, 16, 4, 2)
    x, w, cotangent = rows_and_matrices(121, 32, 48, 4, "bfloat16", seed=2)
    sizes = jnp.asarray(sizes, jnp.int32)
    filled = int(sizes.sum())
    y, grad_x, grad_w = plain(x, w, sizes, cotangent)

    def run(kernel, *arrays, **options):
        return quick_jit(partial(kernel, tiles=tiles, interpret=True, **options))(*arrays)

    assert_close(run(triton.rows, x, w, sizes)[:filled], y[:filled], 4e-3)
    assert_close(run(triton.rows, cotangent, w, sizes, transposed=True)[:filled], grad_x[:filled], 4e-3)
    assert_close(run(triton.products, x, cotangent, sizes), grad_w, 4e-3)


def kernel_arguments(kind, seed=0):
    x, w, cotangent = rows_and_matrices(40, D, F, 4, "float32", seed)
    return {"rows": (x, w), "rows_transposed": (cotangent, w), "products": (x, cotangent)}[kind]


@pytest.mark.parametrize(("kind", "index"), [("rows", 0), ("rows_transposed", 1), ("products", 2)])
def test_what_kernels_leave_unspecified_is_masked(kind, index, monkeypatch):
    """XLA's kernel, with NaN where tokamax's may leave anything: rows past the groups, products of empty groups."""
    sizes = jnp.array([9, 0, 17, 3], jnp.int32)
    exact = ragged._xla

    def careless(kind, left, right, sizes):
        out = exact(kind, left, right, sizes)
        return out.at[1].set(jnp.nan) if kind == "products" else out.at[29:].set(jnp.nan)

    monkeypatch.setattr(ragged, "_xla", careless)
    x, w, cotangent = rows_and_matrices(40, D, F, 4, "float32", seed=0)
    got = ragged.compute(kind, "other", *kernel_arguments(kind), sizes)
    assert_close(got, plain(x, w, sizes, cotangent)[index], 1e-6)


def test_a_choice_is_measured_once_and_then_read(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuning, "_PLATFORMS", {"cuda": "cpu"})
    monkeypatch.setattr(tuning, "_chosen", {})
    calls = []

    def wrong(left, right, sizes):
        return left @ right[0]

    def slow(left, right, sizes):
        left = jax.lax.fori_loop(0, 100_000, lambda _, x: -x, left)
        return grouped_matmul_reference(left, right, sizes)

    def fast(left, right, sizes):
        calls.append(1)
        return grouped_matmul_reference(left, right, sizes)

    def cannot(left, right, sizes):
        raise NotImplementedError("not this shape")

    kernels = {"cannot": cannot, "wrong": wrong, "slow": slow, "fast": fast}
    x, w, _ = rows_and_matrices(64, 32, 8, 2, "float32", seed=0)
    sizes = jnp.array([40, 24], jnp.int32)
    choose = jax.jit(lambda *a: tuning.fastest("rows", "cuda", kernels, *a)(*a))  # while tracing, as in a step
    assert_close(choose(x, w, sizes), grouped_matmul_reference(x, w, sizes), 1e-6)
    measured = len(calls)
    tuning._chosen.clear()
    assert tuning.fastest("rows", "cuda", kernels, x, w, sizes) is fast and len(calls) == measured
    file = tmp_path / "intellect_jax" / "grouped_matmul.json"
    file.write_text("{")  # a damaged file is measured over
    tuning._chosen.clear()
    assert tuning.fastest("rows", "cuda", kernels, x, w, sizes) is fast
    assert [choice["kernel"] for choice in json.loads(file.read_text()).values()] == ["fast"]


def test_nothing_is_measured_for_a_device_that_is_not_there():
    kernels = {"first": lambda *a: 1, "second": lambda *a: 2}
    arguments = (jnp.ones((4, 3)), jnp.ones((2, 3, 5)), jnp.array([2, 2]))
    assert tuning.fastest("rows", "tpu", kernels, *arguments) is kernels["first"]
