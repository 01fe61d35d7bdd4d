"""The orchestrator's client of the sampler fleet: generation with strict checks, and weight updates.

It speaks vLLM's routes, so that it does not matter which implementation serves them. Who gets a request is decided in
``servers``, how many at once in ``pressure``, who belongs to the fleet in ``watch``, when it is updated in ``updates``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from intellect_jax.orchestrator.generation import (
    BadGeneration,
    Generation,
    lacks_weights,
    parse_generation,
    was_aborted,
)
from intellect_jax.orchestrator.pressure import Bounds
from intellect_jax.orchestrator.servers import Conversation, NoRoom, Server, Servers
from intellect_jax.orchestrator.updates import Updates
from intellect_jax.orchestrator.watch import Watch
from intellect_jax.orchestrator.wire import FleetError, RequestRefused, ServerFailed, Wire
from intellect_jax.types import Version

_BACKOFF = 0.25  # seconds before the second try, doubled for each further one
_READY_EVERY = 0.2  # seconds between looks at a server that is starting


class Fleet:
    """Use it as an asynchronous context manager, within one event loop.

    A server that fails is left alone for a while; one that lost its weights (it was restarted) gets the latest again.
    """

    def __init__(self, urls: Sequence[str], config: ConfigDict):
        self.on_damaged: Callable[[Version], None] = lambda version: None  # a server could not read this version
        bounds = Bounds.from_config(config.sampler)
        self._servers = Servers([Server(url.rstrip("/"), bounds.start) for url in urls])
        self._wire = Wire(config.sampler.request_timeout)
        self._updates = Updates(config, self._servers, self._wire, lambda version: self.on_damaged(version))
        self._watch = Watch(self._servers, self._wire, self._updates, bounds, config.launch.heartbeat_timeout)
        self._timeout = config.sampler.request_timeout
        self._attempts = config.orchestrator.max_attempts
        self._outage = config.launch.start_timeout
        # A request with a seed of its own slows vLLM down on a GPU; with chunked prefill it ends the CPU engine (0.32).
        self._seeded = config.sampler.backend != "vllm"
        self._retries = 0

    async def __aenter__(self) -> Fleet:
        await self._wire.__aenter__()
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self._updates.close()
        await self._wire.__aexit__(*raised)

    @property
    def asked(self) -> int:
        """Requests and administrative calls so far, those that failed included."""
        return self._wire.asked

    @property
    def answered(self) -> int:
        """Of them, those that are over."""
        return self._wire.answered

    async def wait_ready(self, timeout: float) -> None:
        """Until every server answers its health check; raises FleetError after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        for server in self._servers.all:
            while not await self._wire.healthy(server):
                if time.monotonic() > deadline:
                    raise FleetError(f"{server.url} was not ready within {timeout:.0f} s")
                await asyncio.sleep(_READY_EVERY)

    async def watch(self, run_dir: Path) -> None:
        """Looks after the servers until cancelled: their health, their load, and who joins ``run_dir`` or leaves."""
        await self._watch.run(run_dir)

    async def generate(
        self,
        token_ids: Sequence[int],
        sampling_params: dict[str, Any],
        seed: int | None,
        conversation: Conversation | None = None,
    ) -> Generation:
        """Samples a continuation of ``token_ids``, on the server of the conversation's earlier turns if it is well.

        Servers that cannot be reached, or were restarted, are waited for up to ``launch.start_timeout``. Raises
        RequestRefused, BadGeneration for an answer that must not be trained on, and FleetError when every try failed or
        no server had room in time.
        """
        params = {**sampling_params, "logprobs": 1} | ({} if seed is None or not self._seeded else {"seed": seed})
        body = {"model": "policy", "token_ids": list(token_ids), "sampling_params": params, "stream": False}
        answer = await self._insist(body, conversation or Conversation())
        return parse_generation(answer, len(token_ids), sampling_params)

    async def update(
        self,
        manifest_path: Path,
        version: Version,
        superseded: Callable[[], bool] = lambda: False,
        *,
        whole: bool = False,
    ) -> bool:
        """Makes ``version`` the policy of every server; raises FleetError when none took it in time.

        A server that did not is left alone for a while and tried again with the next version. Returns False when it
        gave up because ``superseded()``: a newer version is there, and this one perhaps no longer. Servers that still
        wait for their turn then take the newer one; with ``whole`` they take this one first.
        """
        return await self._updates.roll(manifest_path, version, superseded, whole)

    def oldest(self) -> Version | None:
        """The oldest version that a serving server has; None where one has none, or nobody serves."""
        versions = [server.version for server in self._servers.serving]
        known = [version for version in versions if version is not None]
        return min(known) if known and len(known) == len(versions) else None

    def figures(self) -> dict[str, float]:
        """How the fleet stands, under metrics' names."""
        serving = self._servers.serving
        return {
            "fleet/known": len(self._servers.all),
            "fleet/healthy": len(serving),
            "fleet/inflight": sum(server.load for server in self._servers.all),
            "fleet/limit": sum(server.limit for server in serving),
            "fleet/waiting": self._servers.waiting,
            "fleet/retries": self._retries,
            "fleet/stragglers": self._updates.stragglers.count,
        }

    async def _insist(self, body: dict[str, Any], conversation: Conversation) -> dict[str, Any]:
        """The answer of the first server that gives one."""
        failures: list[str] = []
        attempt, pauses, outage_ends = 0, 0, time.monotonic() + self._outage
        while attempt < self._attempts:
            try:
                async with self._servers.place(conversation, self._timeout) as server:
                    return await self._ask(server, body)
            except NoRoom as error:
                failures.append(str(error))
                if (
                    self._servers.serving or time.monotonic() > outage_ends
                ):  # else all of them are gone: it is an outage
                    break
            except ServerFailed as error:
                failures = [*failures[-3:], str(error)]
                await self._recover(server, _BACKOFF * 2 ** min(pauses, 4))
                pauses += 1
                if not error.outage or time.monotonic() > outage_ends:
                    attempt += 1
                self._retries += attempt < self._attempts
        raise FleetError(f"generation failed: {'; '.join(failures)}")

    async def _ask(self, server: Server, body: dict[str, Any]) -> dict[str, Any]:
        installs = server.installs
        try:
            answer = await self._wire.post(server, "/inference/v1/generate", body)
            if lacks_weights(answer):
                raise ServerFailed(f"{server.url} has no weights yet", "no_weights", outage=True)
            if was_aborted(answer):
                raise ServerFailed(f"{server.url} ended before it had answered", outage=True)
        except ServerFailed as error:
            if error.code == "no_weights" and server.installs == installs:
                server.version = None  # it was restarted; whoever sees that first installs for all
            raise
        return answer

    async def _recover(self, server: Server, pause: float) -> None:
        """Gives a server that failed the weights that it lacks, or else a rest."""
        if server.version is not None or self._updates.latest is None or await self._updates.bring(server):
            self._servers.rest(server, pause)


__all__ = ["BadGeneration", "Conversation", "Fleet", "FleetError", "Generation", "RequestRefused"]
