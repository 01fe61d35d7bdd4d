"""The engine against plain forward passes of the same policy."""

import threading
import time

import numpy as np
import pytest

from intellect_jax.sampler.engine import UpdateRefused
from intellect_jax.sampler.mailbox import EngineStopped
from intellect_jax.sampler.main import make_state
from intellect_jax.sampler.sampling import sample
from intellect_jax.types import Version
from tests.policies import SMALL, random_params
from tests.samplers import (
    MAX_LEN,
    V0,
    expected_logprobs,
    generate,
    install,
    request,
    running,
    sampler_config,
    teacher_forced,
)

RNG = np.random.default_rng(0)


def prompts(count: int, longest: int = 40) -> list[list[int]]:
    return [RNG.integers(0, SMALL.vocab_size, RNG.integers(1, longest)).tolist() for _ in range(count)]


def wait_until(condition, timeout=30.0):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.001)


@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0])
def test_logprobs_equal_teacher_forcing_for_more_requests_than_slots(state, temperature):
    requests = [request(p, RNG.integers(1, 30), seed, temperature=temperature) for seed, p in enumerate(prompts(30))]
    params = random_params(SMALL, 0)
    for done in generate(state, *requests):
        assert len(done.token_ids) == done.params.max_tokens and done.finish_reason == "length"
        expected = expected_logprobs(params, done.prompt, done.token_ids, temperature or 1.0)
        np.testing.assert_allclose(done.logprobs, expected, atol=1e-4)


def test_greedy_takes_the_argmax_of_every_step(state):
    (done,) = generate(state, request([5, 6, 7], 40, temperature=0.0))
    logits, _ = teacher_forced(random_params(SMALL, 0), done.prompt + done.token_ids)
    assert done.token_ids == logits[2:-1].argmax(-1).tolist()


def test_the_same_seed_samples_the_same_whatever_else_is_in_the_batch(state):
    (alone,) = generate(state, request([1, 2, 3], 50, seed=2**63 + 11))
    others = [request(p, 30, seed=i) for i, p in enumerate(prompts(12))]
    again, twin, other_seed, *_ = generate(
        state,
        request([1, 2, 3], 50, seed=2**63 + 11),
        request([1, 2, 3], 50, seed=2**63 + 11),
        request([1, 2, 3], 50, seed=11),
        *others,
    )
    assert again.token_ids == twin.token_ids == alone.token_ids
    assert other_seed.token_ids != alone.token_ids


def test_every_draw_is_keyed_by_the_seed_and_the_absolute_position(state):
    (done,) = generate(state, request([4, 5, 6, 7], 40, seed=(9 << 32) + 5))
    logits, _ = teacher_forced(random_params(SMALL, 0), done.prompt + done.token_ids)
    count, first = len(done.token_ids), len(done.prompt)
    seeds, ones = np.tile(np.array([9, 5], np.uint32), (count, 1)), np.ones(count, np.float32)
    positions = np.arange(first, first + count, dtype=np.int32)
    drawn, _ = sample(logits[first - 1 : -1], seeds, positions, ones, ones)
    assert done.token_ids == drawn.tolist()


def test_the_longest_request_fits_exactly(state):
    (done,) = generate(state, request([1] * 10, MAX_LEN - 10, seed=3))
    expected = expected_logprobs(random_params(SMALL, 0), done.prompt, done.token_ids)
    np.testing.assert_allclose(done.logprobs, expected, atol=1e-4)


def test_a_stop_token_ends_the_answer_and_belongs_to_it(state):
    (free,) = generate(state, request([9, 8], 40, temperature=0.0))
    stop = free.token_ids[5]
    (stopped,) = generate(state, request([9, 8], 40, temperature=0.0, stop_token_ids=frozenset({stop})))
    first = free.token_ids.index(stop)
    assert stopped.token_ids == free.token_ids[: first + 1] and stopped.finish_reason == "stop"


def test_routed_experts_are_those_of_a_forward_pass(state):
    requests = [request(p, 20, seed, return_routed_experts=True) for seed, p in enumerate(prompts(6))]
    requests.append(request([3], 5, return_routed_experts=True))  # nothing to prefill
    for done in generate(state, *requests):
        _, routes = teacher_forced(random_params(SMALL, 0), done.prompt + done.token_ids)
        assert done.routed_experts.shape == (len(done.prompt) + done.params.max_tokens - 1, 2, 3)
        np.testing.assert_array_equal(np.sort(done.routed_experts), np.sort(routes[:-1]))


@pytest.mark.slow
def test_several_steps_a_round_give_the_same_answers(state):
    def requests():
        return [request([7, i], 21, seed=i, stop_token_ids=frozenset({3})) for i in range(12)]

    with running(sampler_config(decode_steps=4)) as rounds_of_four:
        install(rounds_of_four, 0)
        for one, four in zip(generate(state, *requests()), generate(rounds_of_four, *requests()), strict=True):
            assert one.token_ids == four.token_ids and one.finish_reason == four.finish_reason
            np.testing.assert_allclose(one.logprobs, four.logprobs, atol=1e-4)


def test_requests_join_while_others_run(state):
    slow = request([1], MAX_LEN - 1)
    state.engine.submit(slow)
    wait_until(lambda: len(slow.token_ids) > 3)
    (quick,) = generate(state, request([2], 2))
    assert not slow.future.done() and quick.finish_reason == "length"
    slow.future.result(30)


def test_a_cancelled_request_gives_its_slot_back(state):
    cancelled = [request([1], MAX_LEN - 1) for _ in range(20)]  # running ones and waiting ones
    for each in cancelled:
        state.engine.submit(each)
    wait_until(lambda: state.engine.stats().running == 8)
    state.engine.pause("keep").result(10)  # so that none can end by itself
    for each in cancelled:
        each.future.cancel()
    wait_until(lambda: state.engine.stats().running == state.engine.stats().waiting == 0)
    state.engine.resume().result(10)
    assert len(generate(state, request([2], 3))[0].token_ids) == 3


def test_pausing_keeps_aborts_or_waits(state):
    engine = state.engine
    slow = request([1], MAX_LEN - 1)
    engine.submit(slow)
    wait_until(lambda: slow.token_ids)
    engine.pause("keep").result(10)
    frozen = len(slow.token_ids)
    late = request([2], 2)
    engine.submit(late)
    time.sleep(0.1)
    assert len(slow.token_ids) == frozen and not late.future.done() and engine.stats().paused
    engine.resume().result(10)
    assert late.future.result(10).finish_reason == "length"

    drained = engine.pause("wait")
    after = request([3], 2)
    engine.submit(after)
    drained.result(30)
    assert slow.future.done() and len(slow.future.result().token_ids) == MAX_LEN - 1 and not after.future.done()
    engine.pause("abort").result(10)
    assert after.future.result(10).finish_reason == "abort" and after.token_ids == []
    engine.resume().result(10)


def test_resuming_ends_a_wait_for_the_drain(state):
    slow = request([1], MAX_LEN - 1)
    state.engine.submit(slow)
    drained = state.engine.pause("wait")
    state.engine.resume().result(10)
    drained.result(10)
    assert len(generate(state, request([2], 2))[0].token_ids) == 2
    slow.future.result(30)


def test_nothing_recompiles_after_the_warm_up(state):
    """Every shape, with an update in the middle."""
    before = state.compilations.after_warmup  # of other tests' own programs
    long = [request([1] * length, 3, seed=length) for length in (1, 2, 31, 32, 33, 34, 200, MAX_LEN - 3)]
    for each in long:
        state.engine.submit(each)
    install(state, 0, V0)
    for each in long:
        each.future.result(30)
    generate(state, *(request(p, 5, top_p=0.5, return_routed_experts=True) for p in prompts(20)))
    assert state.compilations.after_warmup == before


def test_an_update_is_refused_while_requests_run_under_wait():
    with running(sampler_config(on_update="wait")) as state:
        install(state, 0)
        slow = request([1], MAX_LEN - 1)
        state.engine.submit(slow)
        wait_until(lambda: slow.token_ids)
        with pytest.raises(UpdateRefused, match="1 requests are running"):
            install(state, 1, Version(0, 1))
        assert slow.future.result(30).spans[-1].version == V0
        state.engine.pause("wait").result(30)
        install(state, 1, Version(0, 1))
        state.engine.resume().result(10)
        assert generate(state, request([2], 2))[0].spans[0].version == Version(0, 1)


def test_stopping_fails_what_is_unfinished_and_refuses_more():
    with running(sampler_config()) as state:
        install(state, 0)
        requests = [request([1], MAX_LEN - 1) for _ in range(12)]
        for each in requests:
            state.engine.submit(each)
        assert state.engine.stop(timeout=10)
        for each in requests:
            assert each.future.done()
        with pytest.raises(EngineStopped):
            requests[-1].future.result(0)
        with pytest.raises(EngineStopped):
            state.engine.submit(request([1], 2))


def test_what_was_posted_but_never_run_fails_too():
    """An engine that ends while it compiles has callers already."""
    state = make_state(sampler_config(), SMALL, None)
    waiting, early = request([1], 2), state.engine.pause("keep")
    state.engine.submit(waiting)
    state.engine.failure = RuntimeError("no device")
    state.engine._close()
    for future in (waiting.future, early):
        with pytest.raises(EngineStopped, match="no device"):
            future.result(0)


def test_a_failure_of_the_engine_reaches_every_caller():
    with running(sampler_config()) as state:
        install(state, 0)
        slow = request([1], MAX_LEN - 1)
        failed = threading.Event()

        def explode(chunk):
            failed.set()
            raise RuntimeError("out of memory")

        slow.on_chunk = explode
        state.engine.pause("keep").result(10)
        state.engine.submit(slow)
        state.engine.submit(other := request([2], MAX_LEN - 1))
        state.engine.resume().result(10)
        with pytest.raises(EngineStopped, match="out of memory"):
            slow.future.result(10)
        with pytest.raises(EngineStopped, match="out of memory"):
            other.future.result(10)
        assert failed.is_set() and isinstance(state.engine.failure, RuntimeError)
