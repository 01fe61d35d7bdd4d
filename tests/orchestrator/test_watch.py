"""Health, load, joining and leaving while requests go on."""

import asyncio
import json
import logging
from contextlib import asynccontextmanager

import pytest

from intellect_jax import membership
from intellect_jax.bridge.huggingface import to_hf
from intellect_jax.orchestrator import watch
from intellect_jax.orchestrator.fleet import Conversation, Fleet
from intellect_jax.transport.weights import WeightStore
from intellect_jax.types import Version
from tests.orchestrator.standins import FEW_PROGRAMS, METRICS, StandIn, config_for, standing_in, until, url
from tests.policies import SMALL, random_params
from tests.samplers import running, serving

GREEDY = {"max_tokens": 5, "temperature": 0.0}
V1, V2 = Version(0, 1), Version(0, 2)


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(watch, "EVERY", 0.05)
    monkeypatch.setattr(watch, "LOOK", 0.5)


@pytest.fixture
def told(caplog):
    caplog.set_level(logging.INFO, logger="intellect_jax")
    return lambda word: [record.getMessage() for record in caplog.records if word in record.getMessage()]


@asynccontextmanager
async def watching(urls, run_dir, config=None):
    async with Fleet(urls, config or config_for(urls)) as fleet:
        task = asyncio.create_task(fleet.watch(run_dir))
        try:
            yield fleet
        finally:
            task.cancel()


def healthy(fleet):
    return fleet.figures()["fleet/healthy"]


def test_a_server_that_fails_its_health_checks_rests_until_it_answers_again(tmp_path, told):
    async def scenario():
        standins = [StandIn(), StandIn()]
        async with standing_in(*standins) as urls, watching(urls, tmp_path) as fleet:
            await fleet.update(tmp_path, V1)
            standins[0].healthy = False
            await until(lambda: healthy(fleet) == 1)
            standins[0].asked.clear()
            await asyncio.gather(*(fleet.generate([i], GREEDY, None) for i in range(6)))
            assert standins[0].asked == [] and len(standins[1].asked) == 6
            await fleet.update(tmp_path, V2)
            assert standins[0].taken == ["0.1"], "nobody waits for it"
            standins[0].healthy = True
            await until(lambda: healthy(fleet) == 2)
            assert standins[0].taken == ["0.1", "0.2"], "the latest weights come before any request"
            await asyncio.gather(*(fleet.generate([i], GREEDY, None) for i in range(6)))
            assert standins[0].asked
            await asyncio.sleep(0.3)
            return urls[0]

    address = asyncio.run(scenario())
    assert told("health checks") == [f"{address} failed 3 health checks in a row: it gets no requests until it answers"]
    assert told("is back") == [f"{address} answers again and is back in the fleet with version 0.2"]


def test_one_failed_look_is_nothing(tmp_path, told):
    async def scenario():
        standin = StandIn()
        looks = []

        async def on_health(http):
            looks.append(1)
            return watch_answer(len(looks) % 3 == 0)

        standin.on_health = on_health
        async with standing_in(standin) as urls, watching(urls, tmp_path) as fleet:
            await until(lambda: len(looks) > 9)
            assert healthy(fleet) == 1

    def watch_answer(good):
        from aiohttp import web

        return web.json_response({}, status=200 if good else 503)

    asyncio.run(scenario())
    assert not told("health checks")


def test_what_a_lost_server_holds_is_tried_elsewhere(tmp_path):
    """It accepts requests and never answers them; the request's own time limit is a minute."""

    async def scenario():
        standins = [StandIn(generate_seconds=30), StandIn()]
        async with standing_in(*standins) as urls:
            config = config_for(urls)
            config.launch.heartbeat_timeout = 0.4
            async with watching(urls, tmp_path, config) as fleet:
                await fleet.update(tmp_path, V1)
                conversation = Conversation()
                asking = asyncio.ensure_future(fleet.generate([1], GREEDY, None, conversation))
                await until(lambda: standins[0].asked)
                standins[0].healthy = False
                await asyncio.wait_for(asking, 5)
                assert conversation.server.url == urls[1] and standins[1].asked == [[1]]
                assert fleet.figures()["fleet/retries"] == 1

    asyncio.run(scenario())


def test_the_limit_follows_what_a_server_tells_and_stays_when_it_tells_nothing(tmp_path, told):
    async def scenario():
        standin = StandIn(metrics=METRICS.format(running=8, waiting=0, cache=0.99))
        async with standing_in(standin) as urls:
            config = config_for(urls, min_inflight=3)
            async with watching(urls, tmp_path, config) as fleet:
                limit = lambda: fleet.figures()["fleet/limit"]  # noqa: E731
                assert limit() == 12, "slots and prefill rows of the test's configuration"
                await until(lambda: limit() == 3)
                standin.generate_seconds = 0.01
                for lie in (None, "what?", METRICS.format(running=8, waiting=0, cache="nan"), METRICS[:30]):
                    standin.metrics = lie
                    await asyncio.gather(*(fleet.generate([1], GREEDY, None) for _ in range(40)))
                    assert limit() == 3
                standin.metrics = METRICS.format(running=3, waiting=0, cache=0.1)
                for _ in range(40):
                    await asyncio.gather(*(fleet.generate([1], GREEDY, None) for _ in range(40)))
                    if limit() == 12:
                        return
                raise AssertionError(limit())

    asyncio.run(scenario())
    assert not told("looking at")


def test_a_real_server_tells_its_load_under_vllms_names(tmp_path):
    config = config_for([url()], **FEW_PROGRAMS)
    manifest = WeightStore(tmp_path / "weights").publish(V1, to_hf(random_params(SMALL, 1), SMALL))

    async def scenario(state):
        async with serving(state, config.sampler.urls[0]), Fleet(config.sampler.urls, config) as fleet:
            await fleet.update(manifest, V1)
            (server,) = fleet._servers.all
            idle = await fleet._wire.stats(server, 5)
            await asyncio.gather(*(fleet.generate([5] * 10, {"max_tokens": 30}, None) for _ in range(3)))
            busy = [asyncio.ensure_future(fleet.generate([3 + i] * 100, {"max_tokens": 150}, None)) for i in range(11)]
            await until(lambda: state.engine.stats().running == 8)
            loaded = await fleet._wire.stats(server, 5)
            for each in busy:
                each.cancel()
            await until(lambda: state.engine.stats().running + state.engine.stats().waiting == 0)
            return idle, loaded

    with running(config) as state:
        idle, loaded = asyncio.run(scenario(state))
    assert (idle.running, idle.waiting, idle.cache, idle.generated) == (0, 0, 0.0, 0)
    assert (loaded.running, loaded.waiting) == (8, 1) and loaded.generated >= 90
    assert 100 / 256 <= loaded.cache <= 1.0


def test_a_real_server_joins_and_leaves_while_requests_go_on(tmp_path, told):
    config = config_for([url()], **FEW_PROGRAMS)
    joining = url()
    manifest = WeightStore(tmp_path / "weights").publish(V1, to_hf(random_params(SMALL, 1), SMALL))

    async def scenario(first, second):
        async with serving(first, config.sampler.urls[0]), watching(config.sampler.urls, tmp_path, config) as fleet:
            await fleet.update(manifest, V1)
            stop, answers = asyncio.Event(), []

            async def ask(i):
                while not stop.is_set():
                    answers.append(await fleet.generate([i + 1, 2], GREEDY, seed=None))

            asking = [asyncio.ensure_future(ask(i)) for i in range(12)]
            assert membership.register(tmp_path, "sampler-100", joining)
            await until(lambda: fleet.figures()["fleet/known"] == 2)
            await asyncio.sleep(0.3)
            assert healthy(fleet) == 1, "it does not even listen yet"
            async with serving(second, joining):
                await until(lambda: second.engine.stats().generated > 50)
                assert second.engine.stats().version == V1 and healthy(fleet) == 2
            membership.unregister(tmp_path, "sampler-100")
            await until(lambda: fleet.figures()["fleet/known"] == 1)
            before = len(answers)
            await until(lambda: len(answers) > before + 30)
            stop.set()
            await asyncio.gather(*asking)
            return answers

    with running(config) as first, running(config) as second:
        answers = asyncio.run(scenario(first, second))
    assert all(answer.versions == [1] * 5 for answer in answers)
    assert told("joined") == [f"sampler-100 ({joining}) joined the fleet with version 0.1"]
    assert told("left") == [f"sampler-100 ({joining}) left the fleet"]


def test_a_server_of_another_machine_that_only_listens_for_itself_is_named_once(tmp_path, told):
    async def scenario():
        folder = tmp_path / membership.FOLDER
        folder.mkdir()
        entry = {"name": "sampler-100", "url": "http://127.0.0.1:1", "host": "elsewhere", "pid": 1, "since": 0.0}
        (folder / "sampler-100.json").write_text(json.dumps(entry))
        (folder / "sampler-101.json").write_text("torn {")
        async with standing_in(StandIn()) as urls, watching(urls, tmp_path) as fleet:
            await until(lambda: told("elsewhere"))
            await asyncio.sleep(0.2)
            assert fleet.figures()["fleet/known"] == 1

    asyncio.run(scenario())
    assert len(told("--config.sampler.urls=http://elsewhere:PORT")) == 1
