"""vLLM's processes end with the role that started them, also when that has no time to end them."""

import asyncio
import time
from pathlib import Path

import pytest

from intellect_jax.orchestrator.fleet import Fleet
from intellect_jax.sampler.vllm_plugin.ancestors import parent_of
from tests.vllm.servers import POLICIES, server_config, serving, write_model

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]


def descendants(pid):
    parents = {int(path.name): parent_of(int(path.name)) for path in Path("/proc").glob("[0-9]*")}
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found[1:]


def test_nothing_outlives_a_role_that_is_killed(tmp_path):
    config = server_config(write_model(tmp_path / "model", POLICIES["qwen3"]))

    async def ready():
        async with Fleet(config.sampler.urls, config) as fleet:
            await fleet.wait_ready(180)

    with serving(config, tmp_path / "run") as process:
        asyncio.run(ready())
        family = descendants(process.pid)
        assert len(family) >= 3, "the server, its engine and a worker"
        process.kill()  # the role alone: nobody is left to tell the others
        deadline = time.monotonic() + 15
        while left := [pid for pid in family if parent_of(pid) is not None]:
            assert time.monotonic() < deadline, f"{left} of {family} are still there"
            time.sleep(0.2)
