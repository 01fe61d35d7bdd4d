"""The policy over a paged cache: parts of histories in whatever pages give what one forward pass gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intellect_jax.models import paged
from intellect_jax.models.transformer import forward
from intellect_jax.sampler.programs import _routes
from tests.policies import CONFIGS, quick_jit, random_params

FEW = ["all_dense", "qwen3_yarn"]
MORE = ["plain", "tied_without_bias", "grouped_scaled", "qwen3_moe_sparse_step", "qwen3_moe_mlp_only", "llama_bias"]
LENGTH, PAGE = 10, 4
TABLES = np.array([[3, 9, 1], [2, 5, 7], [6, 4, 8]], np.int32)


def whole(cfg, params, tokens):
    positions = jnp.broadcast_to(jnp.arange(LENGTH), tokens.shape)
    return quick_jit(forward, static_argnums=1)(params, cfg, tokens, positions, jnp.ones_like(tokens))


def extend(cfg, params, cache, rows):
    return quick_jit(lambda p, cache, rows: paged.extend(p, cfg, cache, rows, compute_dtype=jnp.float32))(
        params, cache, rows
    )


def part(tokens, start, stop, width, tables=TABLES):
    """Rows of tokens [start, stop), padded to ``width``."""
    positions = np.broadcast_to(np.arange(start, start + width), (len(tokens), width)).astype(np.int32)
    padded = np.zeros_like(positions)
    padded[:, : stop - start] = tokens[:, start:stop]
    return paged.Rows(padded, positions, positions < stop, tables)


@pytest.mark.parametrize("name", [*FEW, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_a_prefill_and_then_single_tokens_equal_one_forward(name):
    """With stacked layers and with layers apart, whose numbers may differ in rounding alone."""
    cfg, rng = CONFIGS[name], np.random.default_rng(0)
    stacked = jax.device_put(random_params(cfg))
    tokens = rng.integers(0, cfg.vocab_size, (3, LENGTH)).astype(np.int32)
    expected = whole(cfg, stacked, tokens)
    for params in (stacked, jax.jit(lambda p: paged.apart(p, cfg))(stacked)):
        cache = paged.init_cache(cfg, 10, PAGE, jnp.float32)
        step = quick_jit(lambda p, cache, rows: paged.extend(p, cfg, cache, rows, compute_dtype=jnp.float32))
        hidden, cache = step(params, cache, part(tokens, 0, 6, 8))
        np.testing.assert_allclose(hidden[:, :6], expected.hidden[:, :6], atol=3e-5)
        for at in range(6, LENGTH):
            hidden, cache = step(params, cache, part(tokens, at, at + 1, 1))
            np.testing.assert_allclose(hidden[:, 0], expected.hidden[:, at], atol=3e-5)
        routed = np.asarray(cache.routed)[TABLES].reshape(3, 12, *cache.routed.shape[2:])
        np.testing.assert_array_equal(routed[:, :LENGTH], expected.routed_experts)


def test_a_row_reads_what_another_row_of_the_same_call_writes():
    """Row 1 shares row 0's first page and brings the rest alone."""
    cfg, rng = CONFIGS["plain"], np.random.default_rng(1)
    params = jax.device_put(random_params(cfg))
    tokens = np.repeat(rng.integers(0, cfg.vocab_size, (1, LENGTH)), 3, axis=0).astype(np.int32)
    tables = np.array([[3, 9, 1], [3, 5, 7]], np.int32)
    first, second = part(tokens[:1], 0, 8, 8, tables[:1]), part(tokens[:1], 4, LENGTH, 8, tables[1:])
    rows = paged.Rows(*(np.concatenate(pair) for pair in zip(first, second, strict=True)))
    hidden, _ = extend(cfg, params, paged.init_cache(cfg, 10, PAGE, jnp.float32), rows)
    expected = whole(cfg, params, tokens).hidden
    np.testing.assert_allclose(hidden[1, :6], expected[0, 4:], atol=3e-5)


def test_what_is_not_real_or_past_the_table_is_written_to_page_zero_alone():
    cfg = CONFIGS["plain"]
    params = jax.device_put(random_params(cfg))
    cache = paged.init_cache(cfg, 10, PAGE, jnp.float32)
    rows = part(np.ones((3, 16), np.int32), 10, 11, 4)  # of which one is real
    rows = rows._replace(real=rows.real | (rows.positions >= 12))
    _, cache = extend(cfg, params, cache, rows)
    written = np.asarray(cache.k).reshape(2, 3, 10, PAGE, -1).any(axis=(0, 1, 4))
    assert sorted(zip(*np.nonzero(written[1:]), strict=True)) == [(0, 2), (6, 2), (7, 2)]  # pages 1, 7 and 8


@pytest.mark.parametrize("name", ["plain", "all_dense"])
def test_experts_are_read_by_page(name):
    """Of a dense policy there are none."""
    cache = paged.init_cache(CONFIGS[name], 10, PAGE, jnp.float32)
    cache = cache._replace(routed=cache.routed + np.arange(10, dtype=np.int16)[:, None, None, None])
    routes = _routes(cache, np.array([3, 1, 0]))
    layers, experts = CONFIGS[name].num_moe_layers, CONFIGS[name].num_experts_per_tok
    np.testing.assert_array_equal(
        routes, np.broadcast_to(np.repeat([3, 1, 0], 4)[:, None, None], (12, layers, experts))
    )


def test_copied_pages_are_equal_in_every_layer():
    cfg = CONFIGS["plain"]
    cache = jax.tree.map(
        lambda x: jnp.arange(x.size).reshape(x.shape).astype(x.dtype), paged.init_cache(cfg, 5, PAGE, jnp.float32)
    )
    copied = paged.copy_pages(cache, np.array([1, 3, 0]), np.array([2, 4, 0]))
    for before, after in zip(cache, copied, strict=True):
        shape = (-1, 5, *before.shape[2:]) if before.ndim == 4 and before.shape[1] == 15 else (1, *before.shape)
        before, after = (np.asarray(x).reshape(shape) for x in (before, after))
        np.testing.assert_array_equal(after[:, [0, 1, 3]], before[:, [0, 1, 3]])
        np.testing.assert_array_equal(after[:, [2, 4]], before[:, [1, 3]])
