"""Pages in the engine: sharing a prompt changes no answer, and too few pages make requests wait and none fail."""

import numpy as np
import pytest

from intellect_jax.types import Version
from tests.policies import SMALL, random_params
from tests.samplers import MAX_LEN, V0, expected_logprobs, generate, install, request, running, sampler_config

PROMPT = np.random.default_rng(5).integers(0, 96, 70).tolist()


def assert_exact(done, seed=0):
    """Log-probabilities are those of one forward pass over all tokens."""
    expected = expected_logprobs(random_params(SMALL, seed), done.prompt, done.token_ids)
    np.testing.assert_allclose(done.logprobs, expected, atol=1e-4)


def test_a_group_shares_its_prompt_and_answers_as_if_it_did_not(state):
    with running(sampler_config(prefix_reuse=False)) as alone:
        install(alone, 0)
        expected = [generate(alone, request(PROMPT, 12, seed=seed))[0] for seed in range(12)]
        assert alone.engine.stats().reused == 0
    reused = state.engine.stats().reused
    group = [request(PROMPT, 12, seed=seed, return_routed_experts=True) for seed in range(12)]
    for done, single in zip(generate(state, *group), expected, strict=True):
        assert done.token_ids == single.token_ids
        np.testing.assert_allclose(done.logprobs, single.logprobs, atol=1e-4)
        assert_exact(done)
        np.testing.assert_array_equal(done.routed_experts[:69], group[0].routed_experts[:69])
    assert state.engine.stats().reused - reused >= 11 * 64  # four pages of 16


def test_the_next_turn_of_a_conversation_finds_the_last_one(state):
    (first,) = generate(state, request(PROMPT[:33], 31, seed=1))
    reused = state.engine.stats().reused
    (second,) = generate(state, request([*first.prompt, *first.token_ids, 5, 6, 7], 20, seed=2))
    assert state.engine.stats().reused - reused == 48  # of 63 that were processed
    assert_exact(second)


def test_nothing_is_shared_across_versions(state):
    generate(state, request(PROMPT, 2))
    install(state, 1, Version(0, 1))
    reused = state.engine.stats().reused
    (done,) = generate(state, request(PROMPT, 10))
    assert state.engine.stats().reused == reused
    assert_exact(done, seed=1)
    install(state, 0, V0)


def test_an_engine_that_keeps_old_values_keeps_them_from_others():
    with running(sampler_config(on_update="keep_kv")) as state:
        install(state, 0)
        old = request(PROMPT, 100)
        state.engine.submit(old)
        while len(old.token_ids) < 5:
            pass
        install(state, 1, Version(0, 1))
        (done,) = generate(state, request(PROMPT, 10))
        assert_exact(done, seed=1)
        while not old.future.done():
            pass
        (later,) = generate(state, request([*PROMPT, *old.token_ids[:60], 1], 5))
        assert_exact(later, seed=1)


@pytest.fixture(scope="module")
def crowded():
    """Pages for one request of full length and a bit; slots for eight."""
    with running(sampler_config(pages=20, decode_steps=2)) as started:
        install(started, 0)
        yield started


def test_requests_that_find_no_page_wait_and_lose_nothing(crowded):
    requests = [request([7, seed], 100, seed=seed, return_routed_experts=True) for seed in range(8)]
    compiled = crowded.compilations.after_warmup  # by other tests
    for done in (answers := generate(crowded, *requests)):
        assert len(done.token_ids) == 100 and done.routed_experts.shape[0] == 101
    assert crowded.compilations.after_warmup == compiled
    for done in answers:
        assert_exact(done)
    stats = crowded.engine.stats()
    assert stats.preempted > 0 and stats.pages == 0


def test_the_longest_requests_run_one_after_another(crowded):
    longest = [request([seed], MAX_LEN - 1, seed=seed) for seed in range(3)]
    for done in generate(crowded, *longest):
        assert len(done.token_ids) == MAX_LEN - 1
        assert_exact(done)


def test_an_update_finds_room_for_all_that_run(crowded):
    requests = [request(PROMPT[:20], 60, seed=seed) for seed in range(8)]
    for each in requests:
        crowded.engine.submit(each)
    while not requests[0].token_ids:
        pass
    install(crowded, 1, Version(0, 1))
    for each in requests:
        assert each.future.result(60).spans[-1].version == Version(0, 1)
    install(crowded, 0, V0)


def test_memory_follows_the_tokens_in_flight(state):
    state.engine.pause("keep").result(10)
    assert state.engine.stats().pages == 0
    state.engine.resume().result(10)
    slow = request([1], MAX_LEN - 1)
    state.engine.submit(slow)
    while len(slow.token_ids) < 40:
        pass
    state.engine.pause("keep").result(10)
    tokens = len(slow.token_ids)
    assert state.engine.stats().pages == -(-tokens // 16)
    state.engine.resume().result(10)
    slow.future.result(30)
