from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intellect_jax.kernels.attention import chunked, native, splash
from intellect_jax.kernels.attention.plain import packed_attention
from tests.kernels.attention_cases import Case, assert_close, output_and_gradients, packed_case
from tests.kernels.on_cpu import computing
from tests.policies import quick_jit

# rows, tokens, query heads, key/value heads, width, segments
SHAPES = {
    "one_token": (1, 1, 2, 1, 4, 1),
    "one_block": (2, 128, 4, 2, 8, 3),
    "odd": (2, 301, 6, 2, 12, 7),
    "one_segment": (1, 384, 4, 4, 16, 1),
    "segments_of_one_token": (1, 140, 3, 1, 5, 140),
    "many_segments": (3, 257, 8, 1, 8, 60),
    "padding_alone": (2, 130, 2, 2, 8, 0),
}


KERNELS = {"native": native.attention, "xla": chunked.attention}


def compare(way: str, case: Case, tolerance: float) -> None:
    with computing(way):
        found, expected = (
            quick_jit(partial(output_and_gradients, kernel))(case) for kernel in (KERNELS[way], packed_attention)
        )
    assert_close(found, expected, tolerance)


@pytest.mark.parametrize("way", KERNELS)
@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_equal_the_plain_reference(way, shape):
    compare(way, packed_case(*SHAPES[shape]), 1e-5)


@pytest.mark.parametrize("way", KERNELS)
def test_blocks_equal_the_plain_reference_in_bfloat16(way):
    compare(way, packed_case(2, 301, 6, 2, 16, 7, jnp.bfloat16), 1e-2)


@pytest.mark.parametrize(
    ("shape", "dtype", "tolerance"),
    [((2, 200, 4, 2, 16, 5), jnp.float32, 1e-5), ((1, 256, 2, 1, 128, 3), jnp.bfloat16, 1e-2)],
)
def test_splash_interpreted_equals_the_plain_reference(shape, dtype, tolerance):
    case = packed_case(*shape, dtype)
    found = quick_jit(partial(output_and_gradients, partial(splash.attention, interpret=True)))(case)
    assert_close(found, quick_jit(partial(output_and_gradients, packed_attention))(case), tolerance)


@pytest.mark.parametrize("way", KERNELS)
def test_tokens_may_lie_in_any_order(way):
    case = packed_case(2, 300, 4, 2, 8, 5)
    order = np.random.default_rng(1).permutation(300)
    compare(way, Case(*(x[:, order] for x in case)), 1e-5)


@pytest.mark.parametrize("way", KERNELS)
@pytest.mark.parametrize(("name", "token"), [("q", 40), ("k", 0), ("k", 33), ("v", 0)])
def test_what_is_not_a_number_stays_so_in_whoever_sees_it(way, name, token):
    case = packed_case(1, 64, 2, 1, 8, 1)
    spoiled = case._replace(**{name: getattr(case, name).at[:, token].set(jnp.nan)})
    with computing(way):
        out, expected = (quick_jit(kernel)(*spoiled) for kernel in (KERNELS[way], packed_attention))
    real = np.asarray(case.segment_ids)[0] > 0
    assert np.isnan(expected[0, real]).any()
    np.testing.assert_array_equal(np.isnan(out)[0, real], np.isnan(expected)[0, real])


def test_only_pairs_of_blocks_that_can_see_each_other_are_visited():
    def visited(segment_ids):
        ids = jnp.asarray(segment_ids, jnp.int32)[None]
        tokens = chunked.Tokens(ids, jnp.zeros_like(ids) + positions_of(segment_ids))
        return int(chunked.visited_pairs(tokens, tokens))

    block, blocks = chunked.BLOCK, 8
    whole = np.ones(block * blocks, int)
    assert visited(whole) == blocks * (blocks + 1) // 2  # one segment: the causal half
    assert visited(np.repeat(np.arange(1, blocks + 1), block)) == blocks  # a segment a block: the diagonal
    halves = np.repeat([1, 2], block * blocks // 2)
    assert visited(halves) == 2 * (blocks // 2) * (blocks // 2 + 1) // 2
    assert visited(np.where(np.arange(whole.size) < block, 1, 0)) == 1  # padding costs nothing
    shifted = np.minimum(1 + (np.arange(whole.size) + block // 2) // block, blocks)  # borders in the middle of blocks
    assert visited(shifted) <= 2 * blocks


def positions_of(segment_ids) -> np.ndarray:
    starts = np.flatnonzero(np.diff(segment_ids, prepend=-1))
    return np.arange(len(segment_ids)) - starts[np.searchsorted(starts, np.arange(len(segment_ids)), side="right") - 1]


def test_unseen_pairs_of_blocks_are_not_computed():
    """What is not visited is not read: NaN in it would spread, even through a weight of zero."""
    case = packed_case(1, 4 * chunked.BLOCK, 2, 1, 8, 1)
    ids = jnp.repeat(jnp.arange(1, 5), chunked.BLOCK)[None]
    positions = jnp.tile(jnp.arange(chunked.BLOCK), 4)[None]
    k, v = (x.at[:, 2 * chunked.BLOCK :].set(jnp.nan) for x in (case.k, case.v))

    def first_half(q, k, v):
        return chunked.attention(q, k, v, ids, positions)[:, : 2 * chunked.BLOCK]

    @quick_jit
    def run(q, k, v):
        out, pull = jax.vjp(first_half, q, k, v)
        return out, *pull(jnp.ones_like(out))

    assert all(np.isfinite(x[:, : 2 * chunked.BLOCK]).all() for x in run(case.q, k, v))


def test_a_gradient_is_the_sum_of_its_shares_by_keys():
    """What a ring of devices relies on: with the whole's output and logsumexp, some keys give their share."""
    case = packed_case(1, 200, 4, 2, 8, 3)
    tokens = chunked.Tokens(case.segment_ids, case.positions)

    @quick_jit
    def run(q, k, v):
        out, lse = chunked.forward(q, k, v, tokens, tokens)

        def share(start, stop):
            keys = chunked.Tokens(*(x[:, start:stop] for x in tokens))
            return chunked.backward(q, k[:, start:stop], v[:, start:stop], tokens, keys, out, lse, jnp.cos(q))

        return share(0, 200), share(0, 90), share(90, 200)

    whole, first, second = run(*case[:3])
    np.testing.assert_allclose(first[0] + second[0], whole[0], atol=2e-5)
    for at in (1, 2):
        np.testing.assert_allclose(jnp.concatenate([first[at], second[at]], axis=1), whole[at], atol=2e-5)
