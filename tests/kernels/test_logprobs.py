import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intellect_jax.kernels.logprobs import member_logprobs, token_logprobs
from tests.kernels.on_cpu import WAYS, both, computing
from tests.policies import quick_jit, relative_error

WIDTH = 8


def inputs(rows, length, vocabulary, share, dtype=jnp.float32, scale=1.0):
    """hidden, a float32 kernel, targets, temperature, members."""
    rng = np.random.default_rng(rows * length + vocabulary)
    hidden = jnp.asarray(rng.normal(0, scale, (rows, length, WIDTH)), dtype)
    kernel = jnp.asarray(rng.normal(size=(WIDTH, vocabulary)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, vocabulary, (rows, length)))
    temperature = jnp.asarray(rng.uniform(0.5, 2, (rows, length)), jnp.float32)
    return hidden, kernel, targets, temperature, jnp.asarray(rng.random((rows, length)) < share)


def plain(hidden, kernel, targets, temperature, members):
    logits = jnp.matmul(hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)
    return tuple(jnp.where(members, x, 0) for x in token_logprobs(logits, targets, temperature))


def outputs_and_gradients(function):
    """Logprobs, entropy, and gradients of a loss of both to hidden states and kernel."""

    def loss(hidden, kernel, *others):
        logprobs, entropy = function(hidden, kernel, *others)
        weights = jnp.cos(jnp.arange(logprobs.size, dtype=jnp.float32)).reshape(logprobs.shape)
        return jnp.sum(weights * (logprobs + 0.3 * entropy)), (logprobs, entropy)

    return jax.grad(loss, (0, 1), has_aux=True)


COMPILED = {"plain": quick_jit(outputs_and_gradients(plain)), **both(outputs_and_gradients(member_logprobs))}


def results(way, hidden, kernel, *others):
    gradients, outputs = COMPILED[way](hidden, kernel, *others)
    assert [x.dtype for x in outputs] == [jnp.float32] * 2
    assert [x.dtype for x in gradients] == [hidden.dtype, kernel.dtype]
    return [np.asarray(x, np.float32) for x in (*outputs, *gradients)]


@pytest.mark.parametrize("way", WAYS)
# One chunk and several of either kind, full and not; a last chunk of columns that repeats some.
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 31, 11), (2, 64, 127), (2, 150, 8200), (1, 300, 16640), (5, 77, 9001)]
)
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_members_get_what_the_plain_reference_says_gradients_included(way, shape, share):
    given = inputs(*shape, share)
    for ours, reference in zip(results(way, *given), results("plain", *given), strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(3, 31, 11), (2, 150, 8200)])
def test_bfloat16_inputs_meet_a_float32_softmax(way, shape):
    """Outputs are exact in the rounded inputs; gradients differ by the rounding of their factors, as any matmul's."""
    hidden, kernel, *others = inputs(*shape, 0.6, jnp.bfloat16)
    ours = results(way, hidden, kernel, *others)
    rounded = kernel.astype(jnp.bfloat16).astype(jnp.float32)
    reference = results("plain", hidden.astype(jnp.float32), rounded, *others)
    for mine, theirs in zip(ours[:2], reference[:2], strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5, rtol=1e-5)
    assert max(map(relative_error, ours[2:], reference[2:])) < 4e-3


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scale", [1e3, 1e12])
def test_extreme_logits_do_not_overflow(way, scale):
    """What is left is the rounding of the logits themselves: 1e-3 at 1e4."""
    given = inputs(2, 150, 8200, 0.7, scale=scale)
    ours, reference = results(way, *given), results("plain", *given)
    assert all(np.isfinite(x).all() for x in ours)
    assert max(map(relative_error, ours, reference)) < 5e-3


@pytest.mark.parametrize("way", WAYS)
def test_what_is_no_member_may_hold_anything(way):
    """Not even NaN, or a target outside of the vocabulary, comes into values or gradients."""
    hidden, kernel, targets, temperature, members = inputs(2, 150, 8200, 0.4)
    poison = jnp.where(members, 1.0, jnp.nan)
    bad = (hidden * poison[..., None], kernel, jnp.where(members, targets, -7), temperature * poison, members)
    good = results(way, hidden, kernel, targets, temperature, members)
    assert all(map(np.array_equal, results(way, *bad), good))


def test_more_tokens_than_have_sums_at_once():
    """In C++ every thread adds up gradients to hidden states, for so many tokens that all take 64 MiB."""
    rng = np.random.default_rng(0)
    tokens, width = 9001, 1024
    hidden = jnp.asarray(rng.normal(size=(1, tokens, width)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(width, 300)) / width**0.5, jnp.float32)
    targets, members = rng.integers(0, 300, (1, tokens)), rng.random((1, tokens)) < 0.97
    given = hidden, kernel, jnp.asarray(targets), jnp.ones((1, tokens)), jnp.asarray(members)
    for ours, reference in zip(results("native", *given), results("plain", *given), strict=True):
        assert relative_error(ours, reference) < 1e-6


def test_columns_that_nobody_could_choose_take_nothing_from_the_others():
    hidden, kernel, *others = inputs(2, 20, 700, 1.0)
    kernel = kernel.at[:, :300].set(-1e38) * 1e-3
    given = jnp.abs(hidden) * 1e6, kernel.at[:, 300:].mul(1e-6), *others  # logits of -inf
    ours, reference = (results(way, *given)[0] for way in ("native", "plain"))
    assert np.isfinite(reference).any() and not np.isfinite(reference).all()
    np.testing.assert_allclose(ours, reference, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_whole_numbers_and_temperatures_may_be_of_any_size(way):
    hidden, kernel, targets, _, members = inputs(2, 20, 127, 0.5)
    temperature = jnp.full(targets.shape, 0.5)
    narrow = hidden, kernel, targets.astype(jnp.int16), temperature.astype(jnp.bfloat16), members
    for a, b in zip(results(way, *narrow), results(way, hidden, kernel, targets, temperature, members), strict=True):
        np.testing.assert_array_equal(a, b)


def gradient(tokens, vocabulary, width=WIDTH):
    """Compiled gradients to hidden states and kernel, of one row, in plain XLA, whose memory the compiler knows."""
    row = (1, tokens)

    def loss(hidden, kernel, targets, temperature, members):
        return member_logprobs(hidden, kernel, targets, temperature, members)[0].sum()

    shapes = [(*row, width), (width, vocabulary), row, row, row]
    dtypes = [jnp.float32, jnp.float32, jnp.int32, jnp.float32, bool]
    abstract = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    with computing("xla"):
        return quick_jit(jax.grad(loss, (0, 1))).lower(*abstract).compile()


def test_memory_grows_with_the_tokens_alone():
    """Forward and backward pass: at most linearly from 4 K to 32 K tokens, hardly with the vocabulary."""
    short, long, wide = (
        gradient(tokens, vocabulary).memory_analysis().temp_size_in_bytes
        for tokens, vocabulary in [(4096, 32768), (32768, 32768), (4096, 131072)]
    )
    assert long < 8 * short
    assert wide < short + 4 * WIDTH * 131072 * 1.1
    assert long < 4 * 32768 * 32768 / 20  # one array of all logits


@pytest.mark.parametrize("way", WAYS)
def test_a_few_large_features_cost_no_bits(way):
    """Against float64. As in a language model, they come early among the features, and each adds to every logit."""
    rng = np.random.default_rng(0)
    hidden, kernel = rng.normal(size=(64, 576)), 0.1 * rng.normal(size=(576, 512))
    hidden[:, [17, 41, 199]] += [60, -30, 100]
    kernel[[17, 41, 199]] += 0.3
    hidden, kernel = (jnp.asarray(x, jnp.float32) for x in (hidden, kernel))
    logits = np.asarray(hidden, np.float64) @ np.asarray(kernel, np.float64)
    peak = logits.max(axis=1, keepdims=True)
    exact = logits - peak - np.log(np.exp(logits - peak).sum(axis=1, keepdims=True))
    targets = jnp.asarray(rng.integers(0, 512, (1, 64)))
    given = hidden[None], kernel, targets, jnp.ones((1, 64)), jnp.ones((1, 64), bool)

    def error(which):
        off = results(which, *given)[0][0] - np.take_along_axis(exact, np.asarray(targets).T, axis=1)[:, 0]
        return np.sqrt(np.mean(off**2))

    assert error(way) < 0.25 * error("plain")  # 0.29 where the large ones are added up first
