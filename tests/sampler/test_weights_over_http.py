"""A real sampler that sees no folder of versions: it gets them from an origin and from another sampler."""

import asyncio
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from intellect_jax.bridge.huggingface import to_hf
from intellect_jax.orchestrator.fleet import Fleet, FleetError
from intellect_jax.sampler import loading
from intellect_jax.sampler.reader import Reader
from intellect_jax.transport.relay.intake import Intake
from intellect_jax.transport.weights import WeightStore
from intellect_jax.types import Version
from tests.policies import SMALL, random_params
from tests.samplers import expected_logprobs, running, sampler_config, serving
from tests.transport.relay.fleet import nbytes, sent
from tests.transport.relay.fleet import serving as serving_weights

VERSIONS = [Version(0, 0), Version(0, 1)]


@pytest.fixture(scope="module")
def engine():
    with running(sampler_config(prefill_buckets=(256,))) as state:
        yield state


@pytest.fixture
def state(engine, tmp_path):
    intake = Intake(tmp_path / "cache", "127.0.0.1")
    engine.reader = Reader(partial(loading.load, intake, model=SMALL, dtype="float32"))
    yield engine
    intake.close()


@pytest.fixture
def store(tmp_path):
    store = WeightStore(tmp_path / "weights")
    for version in VERSIONS:
        store.publish(version, to_hf(random_params(SMALL, version.number), SMALL))
    return store


def config_for(url):
    config = sampler_config(prefill_buckets=(256,))
    config.weights.transport, config.weights.address = "http", url
    return config


def path(version):
    return Path(f"/nowhere/v{version.lineage}-{version.number}/manifest.json")


def test_a_sampler_gets_versions_without_a_shared_folder(store, state, tmp_path):
    other = Intake(tmp_path / "other", "127.0.0.1")

    async def scenario(config):
        async with serving(state, config.sampler.urls[0]), Fleet(config.sampler.urls, config) as fleet:
            for version in VERSIONS:
                other.advance(f"{config.weights.address}/v{version.lineage}-{version.number}/manifest.json")
                await fleet.update(path(version), version)
                yield version, await fleet.generate([3, 1, 4], {"max_tokens": 8, "temperature": 1.0}, seed=0)

    async def run(config):
        async for version, generation in scenario(config):
            expected = expected_logprobs(random_params(SMALL, version.number), [3, 1, 4], generation.token_ids)
            np.testing.assert_allclose(generation.logprobs, expected, atol=1e-4)
            assert generation.versions == [version.number] * 8

    with serving_weights(store) as (origin, url):
        asyncio.run(run(config_for(url)))
        for version in VERSIONS:
            whole = nbytes(store.folder / f"v0-{version.number}")
            assert whole <= sent(origin, version) < 1.2 * whole, "it was to come from the other"
    other.close()


def test_a_version_damaged_at_the_trainer_is_refused_and_the_old_one_stays(store, state):
    file = next((store.folder / "v0-1").glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    damaged = []

    async def scenario(config):
        async with serving(state, config.sampler.urls[0]), Fleet(config.sampler.urls, config) as fleet:
            fleet.on_damaged = damaged.append
            await fleet.update(path(VERSIONS[0]), VERSIONS[0])
            with pytest.raises(FleetError, match="hash"):
                await fleet.update(path(VERSIONS[1]), VERSIONS[1])

    with serving_weights(store) as (_, url):
        asyncio.run(scenario(config_for(url)))
    assert damaged and set(damaged) == {VERSIONS[1]}
    assert state.engine.stats().version == VERSIONS[0]
