"""Weight updates that roll through a fleet: how many pause at once, who is overtaken, who is named for being late."""

import asyncio
import logging

import numpy as np
import pytest

from intellect_jax.bridge.huggingface import to_hf
from intellect_jax.orchestrator import stragglers
from intellect_jax.orchestrator.fleet import Fleet
from intellect_jax.transport.weights import WeightStore
from intellect_jax.types import Version
from tests.orchestrator.standins import FEW_PROGRAMS, StandIn, config_for, standing_in, until, url
from tests.policies import SMALL, random_params
from tests.samplers import expected_logprobs, running, serving

V1, V2, V3 = Version(0, 1), Version(0, 2), Version(0, 3)


async def most_paused(fleet, standins, manifest, version):
    """How many servers were paused at once at most while ``version`` rolled."""
    rolling = asyncio.ensure_future(fleet.update(manifest, version))
    most = 0
    while not rolling.done():
        most = max(most, sum(each.paused for each in standins))
        await asyncio.sleep(0.002)
    assert await rolling
    assert not any(each.paused for each in standins)
    return most


@pytest.mark.parametrize(("asked", "servers", "paused"), [(0, 5, 2), (0, 1, 1), (1, 4, 1), (3, 4, 3), (9, 4, 4)])
def test_so_many_servers_pause_at_once_and_all_take_it(tmp_path, asked, servers, paused):
    async def scenario():
        standins = [StandIn(update_seconds=0.05) for _ in range(servers)]
        async with standing_in(*standins) as urls:
            config = config_for(urls, paused_at_once=asked)
            async with Fleet(urls, config) as fleet:
                assert await most_paused(fleet, standins, tmp_path, V1) == servers, "nobody generates before the first"
                assert await most_paused(fleet, standins, tmp_path, V2) == paused
        assert all(each.taken == ["0.1", "0.2"] for each in standins)

    asyncio.run(scenario())


@pytest.mark.slow
def test_generation_goes_on_somewhere_while_real_servers_are_updated(tmp_path):
    """And every token is written under the version that it names."""
    config = config_for([url(), url()], **FEW_PROGRAMS)
    store, rng = WeightStore(tmp_path), np.random.default_rng(0)
    manifests = [store.publish(Version(0, n), to_hf(random_params(SMALL, n), SMALL)) for n in range(1, 5)]
    prompts = [rng.integers(3, 90, size=4).tolist() for _ in range(24)]

    async def scenario(states):
        async with (
            serving(states[0], config.sampler.urls[0]),
            serving(states[1], config.sampler.urls[1]),
            Fleet(config.sampler.urls, config) as fleet,
        ):
            await fleet.update(manifests[0], Version(0, 1))
            answers = [asyncio.ensure_future(fleet.generate(p, {"max_tokens": 60}, 0)) for p in prompts]
            together = 0
            for number in (2, 3, 4):
                rolling = asyncio.ensure_future(fleet.update(manifests[number - 1], Version(0, number)))
                while not rolling.done():
                    together += all(state.engine.stats().paused for state in states)
                    await asyncio.sleep(0.001)
                assert await rolling
            return together, await asyncio.gather(*answers)

    with running(config) as first, running(config) as second:
        together, answers = asyncio.run(scenario((first, second)))
    assert together == 0, "never are all of them paused"
    assert len({version for answer in answers for version in answer.versions}) > 1
    for prompt, answer in zip(prompts, answers, strict=True):
        for version in set(answer.versions):
            mine = np.array(answer.versions) == version
            right = expected_logprobs(random_params(SMALL, version), prompt, answer.token_ids)
            np.testing.assert_allclose(np.array(answer.logprobs)[mine], right[mine], atol=1e-4)


def overtaken(tmp_path, whole):
    """Versions that two servers took, one paused at a time, when version 2 is superseded while the first is at it."""

    async def scenario():
        standins = [StandIn(), StandIn()]
        async with standing_in(*standins) as urls, Fleet(urls, config_for(urls, paused_at_once=1)) as fleet:
            await fleet.update(tmp_path, V1)
            standins[0].update_seconds, newer = 0.3, []
            standins[0].updating.clear()
            rolling = asyncio.ensure_future(fleet.update(tmp_path, V2, lambda: bool(newer), whole=whole))
            await standins[0].updating.wait()
            newer.append(True)
            first = await asyncio.wait_for(rolling, 5)
            oldest = fleet.oldest()
            assert await asyncio.wait_for(fleet.update(tmp_path, V3), 5)
            assert not any(each.paused for each in standins)
            return first, oldest, [each.taken[1:] for each in standins]

    return asyncio.run(scenario())


def test_who_waits_for_a_turn_goes_straight_to_the_newest(tmp_path):
    assert overtaken(tmp_path, whole=False) == (False, V1, [["0.2", "0.3"], ["0.3"]])


def test_a_version_that_is_to_be_evaluated_is_taken_by_all(tmp_path):
    assert overtaken(tmp_path, whole=True) == (True, V2, [["0.2", "0.3"], ["0.2", "0.3"]])


@pytest.fixture
def told(caplog):
    caplog.set_level(logging.INFO, logger="intellect_jax")
    return lambda word: [record.getMessage() for record in caplog.records if word in record.getMessage()]


def test_a_server_that_takes_three_times_as_long_is_named_once_and_while_it_does(tmp_path, told, monkeypatch):
    monkeypatch.setattr(stragglers, "SHORTEST", 0.2)

    async def scenario():
        standins = [StandIn(update_seconds=0.1) for _ in range(3)]
        async with standing_in(*standins) as urls, Fleet(urls, config_for(urls, paused_at_once=3)) as fleet:
            await fleet.update(tmp_path, V1)
            assert fleet.figures()["fleet/stragglers"] == 0 and not told("straggler")
            standins[1].update_seconds = 2.5
            rolling = asyncio.ensure_future(fleet.update(tmp_path, V2))
            await until(lambda: told("straggler"))
            assert not rolling.done(), "it is named while the others wait"
            assert await rolling
            assert fleet.figures()["fleet/stragglers"] == 1
            return urls[1]

    late = asyncio.run(scenario())
    (line,) = told("straggler")
    assert late in line and "0.2" in line and "so far" in line


def test_a_server_that_has_not_taken_a_version_when_the_next_is_there_is_named(tmp_path, told):
    async def scenario():
        standins = [StandIn(), StandIn()]
        async with standing_in(*standins) as urls, Fleet(urls, config_for(urls)) as fleet:
            await fleet.update(tmp_path, V1)
            standins[1].refuses = True
            await fleet.update(tmp_path, V2)
            standins[1].refuses = False
            await fleet.update(tmp_path, V3)
            assert fleet.figures()["fleet/stragglers"] == 1
            assert standins[1].taken == ["0.1", "0.3"]
            return urls[1]

    late = asyncio.run(scenario())
    assert told("straggler") == [f"straggler: {late} still has version 0.1 when 0.3 is there"]


def test_one_that_waited_for_its_turn_is_no_straggler(tmp_path, told):
    overtaken(tmp_path, whole=False)
    assert [line for line in told("straggler") if "0.1 when 0.3" in line] == []
