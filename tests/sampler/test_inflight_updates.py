"""Weights change under running requests: every token agrees with the version that its span names."""

import asyncio

import numpy as np
import pytest

from intellect_jax.bridge.huggingface import to_hf
from intellect_jax.orchestrator.fleet import Fleet
from intellect_jax.sampler import loading
from intellect_jax.transport.relay.intake import Intake
from intellect_jax.transport.weights import WeightStore
from intellect_jax.types import Version
from tests.policies import SMALL, random_params
from tests.samplers import (
    MAX_LEN,
    expected_logprobs,
    install,
    request,
    running,
    sampler_config,
    serving,
    teacher_forced,
)

UPDATES = 12
PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6] * 5, [7], [3, 1, 4]]


def params_of(number: int):
    return random_params(SMALL, number)


async def generate_across_updates(config, store: WeightStore, state):
    """Generations that begin under version 0.0 and see every later version; a new version as soon as each has a token
    of the last one."""
    manifests = [store.publish(Version(0, n), to_hf(params_of(n), SMALL)) for n in range(UPDATES + 1)]
    async with serving(state, config.sampler.urls[0]), Fleet(config.sampler.urls, config) as fleet:
        await fleet.update(manifests[0], Version(0, 0))
        sampling = {"max_tokens": config.sampler.max_len - 30, "temperature": 0.9, "return_routed_experts": True}
        running_ones = [asyncio.ensure_future(fleet.generate(p, sampling, seed=i)) for i, p in enumerate(PROMPTS)]
        await until(lambda: state.engine.stats().running == len(PROMPTS))
        for number in range(1, UPDATES + 1):
            start = state.engine.stats().generated
            await until(lambda start=start: moved_on(state.engine.stats(), start))
            await fleet.update(manifests[number], Version(0, number))
        return await asyncio.wait_for(asyncio.gather(*running_ones), 60)


def moved_on(stats, start):
    """A token each later; or nothing runs any more, as when a version takes long to read."""
    return stats.generated >= start + len(PROMPTS) or stats.running == 0


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("decode_steps", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_every_token_is_exact_under_its_version_across_updates(tmp_path, decode_steps):
    # Tokens for every version, however long one takes to read beside them.
    longest = MAX_LEN if decode_steps == 1 else 2 * MAX_LEN
    config = sampler_config(decode_steps=decode_steps, max_len=longest, prefill_buckets=(32, longest))
    with running(config) as state:
        generations = asyncio.run(generate_across_updates(config, WeightStore(tmp_path, UPDATES + 1), state))
        assert state.engine.stats().updates == UPDATES + 1
    for prompt, generation in zip(PROMPTS, generations, strict=True):
        versions = np.array(generation.versions)
        assert len(set(generation.versions)) >= 6 and versions[0] == 0 and (np.diff(versions) >= 0).all()
        for number in set(generation.versions):
            expected = expected_logprobs(params_of(number), prompt, generation.token_ids, 0.9)
            mine = versions == number
            np.testing.assert_allclose(np.array(generation.logprobs)[mine], expected[mine], atol=1e-4)
            # The test has teeth: under the neighbouring version the same tokens are far less exact.
            other = expected_logprobs(params_of(number + 1), prompt, generation.token_ids, 0.9)
            assert np.abs(np.array(generation.logprobs) - other)[mine].max() > 1e-2


def test_the_first_token_after_an_update_is_drawn_from_the_new_logits():
    """Greedy: it is the argmax under the new weights of the whole history, even though the old weights wrote it."""
    with running(sampler_config()) as state:
        install(state, 0)
        slow = request([5, 6, 7], MAX_LEN - 3, temperature=0.0, return_routed_experts=True)
        state.engine.submit(slow)
        while len(slow.token_ids) < 20:
            pass
        install(state, 1, Version(0, 1))
        slow.future.result(30)
    first, last = slow.spans
    assert (first.version, last.version) == (Version(0, 0), Version(0, 1)) and first.end == last.start >= 20
    logits, routes = teacher_forced(random_params(SMALL, 1), slow.prompt + slow.token_ids)
    assert slow.token_ids[last.start :] == logits[2:-1].argmax(-1).tolist()[last.start :]
    old, _ = teacher_forced(random_params(SMALL, 0), slow.prompt + slow.token_ids)
    assert slow.token_ids[: first.end] == old[2:-1].argmax(-1).tolist()[: first.end]
    # The history's experts are those of the new weights too.
    np.testing.assert_array_equal(np.sort(slow.routed_experts), np.sort(routes[:-1]))


def test_keep_kv_leaves_the_history_as_the_old_weights_computed_it():
    with running(sampler_config(on_update="keep_kv")) as state:
        install(state, 0)
        slow = request([5, 6, 7], MAX_LEN - 3, seed=1)
        state.engine.submit(slow)
        while len(slow.token_ids) < 20:
            pass
        install(state, 1, Version(0, 1))
        slow.future.result(30)
    first, last = slow.spans
    expected = expected_logprobs(random_params(SMALL, 0), slow.prompt, slow.token_ids)
    np.testing.assert_allclose(slow.logprobs[: first.end], expected[: first.end], atol=1e-4)
    exact = expected_logprobs(random_params(SMALL, 1), slow.prompt, slow.token_ids)
    assert np.abs(np.array(slow.logprobs) - exact)[last.start :].max() > 1e-3


def test_reading_a_published_version_gives_back_its_parameters(tmp_path):
    published = params_of(3)
    path = WeightStore(tmp_path).publish(Version(2, 3), to_hf(published, SMALL))
    params, version = loading.load(Intake(), str(path), SMALL, "float32")
    assert version == Version(2, 3)
    np.testing.assert_array_equal(params["head"]["kernel"], published["head"]["kernel"])


def test_in_bfloat16_everything_but_the_router_is_cast():
    params = loading.place(params_of(0), "bfloat16")
    moe = params["moe_layers"]["moe"]
    assert moe["router"]["kernel"].dtype == np.float32 and moe["experts"]["up"].dtype.name == "bfloat16"
