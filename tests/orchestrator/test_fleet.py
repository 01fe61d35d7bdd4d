"""The fleet's client against real servers, including ones that fail, hang up and lose their weights."""

import asyncio
import base64
import io
import json
import math

import numpy as np
import pytest
from aiohttp import web

from intellect_jax.bridge.huggingface import to_hf
from intellect_jax.orchestrator.fleet import Fleet, FleetError, RequestRefused
from intellect_jax.orchestrator.generation import BadGeneration, parse_generation
from intellect_jax.transport.weights import WeightStore
from intellect_jax.types import Version
from tests.orchestrator.standins import FEW_PROGRAMS, answer, answering, config_for, url
from tests.policies import SMALL, random_params
from tests.samplers import expected_logprobs, running, serving

GREEDY = {"max_tokens": 5, "temperature": 0.0}
V1, V2 = Version(0, 1), Version(0, 2)


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    store = WeightStore(tmp_path_factory.mktemp("weights"))
    return {v: store.publish(v, to_hf(random_params(SMALL, v.number), SMALL)) for v in (V1, V2)}


def test_a_sound_answer_is_read_token_by_token():
    got = parse_generation(answer(spans=(("3.1", 0, 1), ("3.4", 1, 2))), 3, {"max_tokens": 2})
    assert (got.token_ids, got.logprobs, got.versions, got.lineage, got.finish_reason) == (
        [4, 5],
        [-0.5, -0.25],
        [1, 4],
        3,
        "stop",
    )


@pytest.mark.parametrize(
    ("wrong", "says"),
    {
        "too few logprobs": (answer(logprobs=(-0.5,)), "other tokens"),
        "of another token": (answer(named=(4, 6)), "other tokens"),
        "not a number": (answer(logprobs=(-0.5, math.nan)), "must be finite"),
        "infinite": (answer(logprobs=(-math.inf, -1.0)), "must be finite"),
        "positive": (answer(logprobs=(0.01, -1.0)), "at most 0"),
        "no token": (answer((), (), ()), "0 tokens"),
        "too many tokens": (answer((1, 2, 3), (-1, -1, -1), (("0.1", 0, 3),)), "3 tokens"),
        "aborted": (answer(finish="abort"), "finish_reason is 'abort'"),
        "unfinished": (answer(finish=None), "finish_reason is None"),
        "gap": (answer(spans=(("0.1", 0, 1),)), "cover 1 of 2"),
        "overlap": (answer(spans=(("0.1", 0, 2), ("0.2", 1, 2))), "do not tile"),
        "empty span": (answer(spans=(("0.1", 0, 0), ("0.2", 0, 2))), "do not tile"),
        "beyond": (answer(spans=(("0.1", 0, 3),)), "cover 3 of 2"),
        "no span": (answer(spans=()), "cover 0 of 2"),
        "two lineages": (answer(spans=(("0.1", 0, 1), ("1.1", 1, 2))), "several lineages"),
        "nameless version": (answer(spans=(("latest", 0, 2),)), "malformed"),
        "no choice": ({"choices": []}, "malformed"),
        "no logprobs": ({"choices": [{"token_ids": [1]}]}, "malformed"),
    }.values(),
)
def test_answers_that_contradict_themselves_are_bad(wrong, says):
    with pytest.raises(BadGeneration, match=says):
        parse_generation(wrong, 3, {"max_tokens": 2})


def test_routed_experts_must_cover_every_processed_token():
    for routes in ({}, {"data": "AAAA", "shape": [3, 1, 1]}, {"data": "", "shape": [0, 0, 0]}):
        sound = answer()
        sound["choices"][0]["routed_experts"] = routes
        with pytest.raises(BadGeneration, match="routed_experts"):
            parse_generation(sound, 3, {"max_tokens": 2, "return_routed_experts": True})


def npy(array):
    """As vLLM sends arrays."""
    with io.BytesIO() as buffer:
        np.save(buffer, array)
        return base64.b64encode(buffer.getvalue()).decode()


def test_vllms_routed_experts_are_read_where_they_belong_to_the_tokens():
    routes = np.arange(4 * 3 * 2).reshape(4, 3, 2).astype(np.uint8)  # 3 tokens of prompt, 2 sampled
    got = {}
    for name, given in {"right": routes, "wide": routes.astype(np.uint16), "short": routes[1:]}.items():
        sound = answer()
        sound["choices"][0]["routed_experts"] = npy(given)
        got[name] = parse_generation(sound, 3, {"max_tokens": 2})
        assert got[name].of_all_layers
    np.testing.assert_array_equal(got["right"].routed_experts, routes)
    np.testing.assert_array_equal(got["wide"].routed_experts, routes)
    assert got["right"].routed_experts.dtype == np.int16 and got["short"].routed_experts is None
    for wrong in ("", "AAAA", npy(routes[0]), npy(routes.astype(np.float32))):
        sound["choices"][0]["routed_experts"] = wrong
        with pytest.raises(BadGeneration, match="routed_experts"):
            parse_generation(sound, 3, {"max_tokens": 2})


def test_a_whole_fleet_takes_an_update_and_generates(manifests):
    config = config_for([url(), url()], **FEW_PROGRAMS)

    async def scenario(states):
        async with (
            serving(states[0], config.sampler.urls[0]),
            serving(states[1], config.sampler.urls[1]),
            Fleet(config.sampler.urls, config) as fleet,
        ):
            await fleet.wait_ready(10)
            await fleet.update(manifests[V1], V1)
            return await asyncio.gather(*(fleet.generate([i, 2], {"max_tokens": 6}, seed=i) for i in range(30)))

    with running(config) as first, running(config) as second:
        generations = asyncio.run(scenario((first, second)))
        shares = [state.engine.stats().generated for state in (first, second)]
    assert sum(shares) == 180 and min(shares) >= 30, "the load is spread"
    for i, got in enumerate(generations):
        assert got.versions == [1] * 6 and got.lineage == 0 and got.routed_experts is None
        expected = expected_logprobs(random_params(SMALL, 1), [i, 2], got.token_ids)
        np.testing.assert_allclose(got.logprobs, expected, atol=1e-4)


def test_a_server_that_lost_its_weights_gets_the_latest_again(manifests):
    config = config_for([url()])

    async def scenario(before, after):
        async with Fleet(config.sampler.urls, config) as fleet:
            async with serving(before, config.sampler.urls[0]):
                await fleet.update(manifests[V1], V1)
                await fleet.update(manifests[V2], V2)
            async with serving(after, config.sampler.urls[0]):
                return await asyncio.gather(*(fleet.generate([i], GREEDY, seed=None) for i in range(10)))

    with running(config) as before, running(config) as after:
        assert all(got.versions == [2] * 5 for got in asyncio.run(scenario(before, after)))
        assert after.engine.stats().updates == 1, "once for all who noticed"


def test_a_damaged_version_is_told_and_taken_once_it_is_mended(tmp_path):
    config = config_for([url()])
    store, tensors = WeightStore(tmp_path), list(to_hf(random_params(SMALL, 1), SMALL))
    manifest = store.publish(V1, tensors)
    file = next(manifest.parent.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    told = []

    def mend(version):
        told.append(version)
        if len(told) == 2:
            store.publish(version, tensors, replace_damaged=True)

    async def scenario(state):
        async with serving(state, config.sampler.urls[0]), Fleet(config.sampler.urls, config) as fleet:
            fleet.on_damaged = told.append
            assert not await fleet.update(manifest, V1, superseded=lambda: True)
            fleet.on_damaged = mend
            assert await fleet.update(manifest, V1)

    with running(config) as state:
        asyncio.run(scenario(state))
        assert state.engine.stats().version == V1
    assert told == [V1, V1]


def test_a_dead_server_is_passed_over_and_an_update_goes_on_without_it(manifests):
    dead = url()
    config = config_for([dead, url()])

    async def scenario(state):
        async with serving(state, config.sampler.urls[1]), Fleet(config.sampler.urls, config) as fleet:
            await fleet.update(manifests[V1], V1)
            return await asyncio.gather(*(fleet.generate([i], GREEDY, seed=None) for i in range(8)))

    with running(config) as state:
        assert all(got.versions == [1] * 5 for got in asyncio.run(scenario(state)))


def test_a_fleet_without_a_living_server_says_so(manifests):
    config = config_for([url()])
    config.launch.start_timeout = 2.0

    async def scenario():
        async with Fleet(config.sampler.urls, config) as fleet:
            with pytest.raises(FleetError, match=r"not ready within"):
                await fleet.wait_ready(0.3)
            with pytest.raises(FleetError, match=r"no server took version 0\.1.*Cannot connect"):
                await fleet.update(manifests[V1], V1)
            with pytest.raises(FleetError, match=r"failed: (.*Cannot connect.*){3}"):
                await fleet.generate([1], GREEDY, seed=None)

    asyncio.run(scenario())


def test_a_request_that_a_server_gives_up_is_made_elsewhere(manifests):
    """As vLLM answers when it is told to end."""
    asked = []

    async def ending(http):
        if http.path == "/collective_rpc":
            return web.json_response({"results": [{"done": True, "error": None, "damaged": False}]})
        if http.path != "/inference/v1/generate":
            return web.json_response({})
        asked.append(http.path)
        return web.json_response(answer(finish="abort" if len(asked) < 3 else "stop", spans=(("0.1", 0, 2),)))

    async def scenario():
        config = config_for([url()])
        async with answering(ending, config.sampler.urls[0]), Fleet(config.sampler.urls, config) as fleet:
            await fleet.update(manifests[V1], V1)
            assert (await fleet.generate([1, 2, 3], {"max_tokens": 2}, seed=None)).finish_reason == "stop"

    asyncio.run(scenario())
    assert len(asked) == 3


def test_server_errors_are_tried_again_and_refusals_are_not():
    calls = []

    async def flaky(http):
        calls.append(await http.json())
        if len(calls) == 1:
            return web.json_response({"error": {"message": "out of memory"}}, status=500)
        if len(calls) == 2:
            http.transport.abort()  # hangs up in the middle
        return web.json_response(answer())

    async def refusing(http):
        calls.append(1)
        return web.json_response({"error": {"message": "token_ids must hold at least one token"}}, status=400)

    async def scenario():
        async with answering(flaky) as address, Fleet([address], config_for([address])) as fleet:
            got = await fleet.generate([7], GREEDY, seed=11)
        assert got.token_ids == [4, 5] and len(calls) == 3
        assert calls[0]["token_ids"] == [7] and calls[0]["sampling_params"]["seed"] == 11
        calls.clear()
        async with answering(refusing) as address, Fleet([address], config_for([address])) as fleet:
            with pytest.raises(RequestRefused, match="at least one token"):
                await fleet.generate([], GREEDY, seed=None)
        assert len(calls) == 1

    asyncio.run(scenario())


def test_a_server_that_never_answers_costs_no_more_than_the_timeout():
    async def silent(http):
        await asyncio.sleep(30)

    async def scenario():
        async with answering(silent) as address:
            config = config_for([address], request_timeout=0.2)
            async with Fleet([address], config) as fleet:
                with pytest.raises(FleetError, match=r"TimeoutError.*no server had room within 0\.2 s"):
                    await asyncio.wait_for(fleet.generate([1], GREEDY, seed=None), 10)

    asyncio.run(scenario())


@pytest.mark.parametrize("fails", ["hangs", "answers 500"])
@pytest.mark.parametrize("silent", ["/pause", "/update_weights", "/finish_weight_update"])
def test_a_server_that_may_have_new_weights_under_the_old_name_stays_paused(manifests, silent, fails):
    """Until it is updated again, which ends what was left open, as vLLM demands."""
    state = {"open": False, "paused": False, "hangs": False}

    async def handler(http):
        if http.path == silent and state["hangs"]:
            state["paused"] = True
            await asyncio.sleep(30 if fails == "hangs" else 0)
            return web.json_response({"error": {"message": "no"}}, status=500)
        if http.path == "/collective_rpc":
            return web.json_response({"results": [{"done": True, "error": None, "damaged": False}]})
        if http.path == "/start_weight_update" and state["open"]:
            return web.json_response({"error": {"message": "... is already active. Call ..."}}, status=500)
        opened = {"/start_weight_update": True, "/finish_weight_update": False}
        state["open"] = opened.get(http.path, state["open"])
        state["paused"] = {"/pause": True, "/resume": False}.get(http.path, state["paused"])
        return web.json_response({})

    async def scenario():
        config = config_for([url()])
        config.launch.start_timeout = 1.0
        async with answering(handler, config.sampler.urls[0]), Fleet(config.sampler.urls, config) as fleet:
            await fleet.update(manifests[V1], V1)
            (server,) = fleet._servers.all
            fleet._wire.timeout, state["hangs"] = 1.0, True
            with pytest.raises(FleetError):
                await fleet.update(manifests[V2], V2)
            untouched = silent == "/pause" or (silent == "/update_weights" and fails == "answers 500")
            assert server.version == (V1 if untouched else None) and state["paused"] != untouched
            state["hangs"] = False
            await fleet.update(manifests[V2], V2)
            assert server.version == V2 and not state["paused"] and not state["open"]

    asyncio.run(scenario())


def test_a_server_is_resumed_even_when_its_update_fails(manifests):
    paths = []

    async def refusing(http):
        paths.append(http.path_qs)
        bad = http.path == "/update_weights"
        if http.path == "/collective_rpc":
            return web.json_response({"results": [{"done": True, "error": None, "damaged": False}]})
        return web.json_response({"error": {"message": "hash"}} if bad else {}, status=400 if bad else 200)

    async def scenario(on_update):
        config = config_for([url()], on_update=on_update)
        async with answering(refusing, config.sampler.urls[0]), Fleet(config.sampler.urls, config) as fleet:
            with pytest.raises(FleetError, match="hash"):
                await fleet.update(manifests[V1], V1)

    asyncio.run(scenario("reprefill"))
    assert paths == ["/collective_rpc"] * 2 + ["/pause?mode=keep", "/start_weight_update", "/update_weights", "/resume"]
    paths.clear()
    asyncio.run(scenario("keep_kv"))
    asyncio.run(scenario("wait"))
    assert [p for p in paths if p.startswith("/pause")] == ["/pause?mode=keep&clear_cache=false", "/pause?mode=wait"]


def test_the_client_speaks_json_without_jax():
    """No role but trainer and sampler imports jax."""
    import subprocess
    import sys

    code = "import sys, intellect_jax.orchestrator.fleet; print('jax' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(found.stdout.lower()) is False
