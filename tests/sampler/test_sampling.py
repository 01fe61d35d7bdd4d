"""The draw follows the distribution that its log-probability names, and depends on seed and position only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from intellect_jax.sampler.sampling import sample

LOGITS = np.random.default_rng(0).normal(size=12).astype(np.float32) * 2
DRAWS = 20_000


def draw(temperature: float, top_p: float = 1.0, logits=LOGITS, seeds=None):
    """DRAWS draws, each with its own seed: tokens and log-probabilities."""
    rows = jnp.broadcast_to(jnp.asarray(logits), (DRAWS, len(logits)))
    seeds = np.stack([np.zeros(DRAWS), np.arange(DRAWS)], axis=1).astype(np.uint32) if seeds is None else seeds
    ones = np.ones(DRAWS, np.float32)
    positions = np.full(DRAWS, 7, np.int32)
    return map(np.asarray, jax.jit(sample)(rows, seeds, positions, temperature * ones, top_p * ones))


def softmax(x):
    return np.exp(x - np.logaddexp.reduce(x.astype(np.float64)))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_tempered_softmax(temperature):
    tokens, logprobs = draw(temperature)
    expected = softmax(LOGITS / temperature)
    counts = np.bincount(tokens, minlength=len(LOGITS))
    assert chisquare(counts, expected * DRAWS).pvalue > 1e-3
    np.testing.assert_allclose(logprobs, np.log(expected)[tokens], atol=1e-5)


def test_top_p_keeps_the_fewest_tokens_that_reach_it_and_renormalises():
    probabilities = np.array([0.4, 0.3, 0.2, 0.1], np.float32)
    tokens, logprobs = draw(1.0, top_p=0.6, logits=np.log(probabilities))
    assert set(tokens) == {0, 1}
    np.testing.assert_allclose(logprobs, np.log(probabilities / 0.7)[tokens], atol=1e-5)
    only_first, logprobs = draw(1.0, top_p=1e-6, logits=np.log(probabilities))
    assert set(only_first) == {0} and np.allclose(logprobs, 0, atol=1e-6)


def test_rows_with_and_without_top_p_do_not_disturb_each_other():
    logits = np.stack([LOGITS, LOGITS])
    seeds, positions = np.zeros((2, 2), np.uint32), np.array([3, 3], np.int32)
    _, alone = sample(logits[:1], seeds[:1], positions[:1], np.ones(1, np.float32), np.ones(1, np.float32))
    _, mixed = sample(logits, seeds, positions, np.ones(2, np.float32), np.array([1.0, 0.3], np.float32))
    assert mixed[0] == alone[0]


def test_greedy_takes_the_largest_logit_and_names_its_unscaled_probability():
    tokens, logprobs = draw(0.0)
    assert set(tokens) == {int(LOGITS.argmax())}
    np.testing.assert_allclose(logprobs, np.log(softmax(LOGITS)).max(), atol=1e-5)


def test_both_words_of_the_seed_and_the_position_matter_and_nothing_else():
    flat, one = np.zeros((4, 1000), np.float32), np.ones(4, np.float32)
    seeds = np.array([[0, 1], [1, 0], [0, 1], [0, 1]], np.uint32)
    tokens, _ = map(np.asarray, sample(flat, seeds, np.array([5, 5, 6, 5], np.int32), one, one))
    assert len({*tokens[:3]}) == 3
    assert tokens[3] == tokens[0]
