"""The orchestrator's client of the sampler fleet: generation with strict checks, and weight updates.

It speaks vLLM's routes, so that it does not matter which implementation serves them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
from ml_collections import ConfigDict

from intellect_jax.orchestrator.generation import BadGeneration, Generation, lacks_weights, parse_generation
from intellect_jax.orchestrator.servers import NoRoom, Server, Servers
from intellect_jax.types import Version

log = logging.getLogger(__name__)

_BACKOFF = 0.25  # seconds before the second try, doubled for each further one
_POLL = 0.01  # seconds before the second question how a reading stands, doubled for each further one
_READY_EVERY = 0.2  # seconds between looks at a server that is starting
_PAUSE = {"reprefill": "mode=keep", "keep_kv": "mode=keep&clear_cache=false", "wait": "mode=wait"}


class FleetError(Exception):
    """No server of the fleet could do what was asked."""


class RequestRefused(Exception):
    """A server says that the request itself is wrong: trying again is no use."""


class Fleet:
    """Use it as an asynchronous context manager, within one event loop.

    A server that fails is left alone for a while; one that lost its weights (it was restarted) gets the latest again.
    """

    def __init__(self, urls: Sequence[str], config: ConfigDict):
        self.on_damaged: Callable[[Version], None] = lambda version: None  # a server could not read this version
        # A few more than its slots: a freed slot is then filled at once.
        capacity = config.sampler.slots + config.sampler.prefill_rows
        self._servers = Servers([Server(url.rstrip("/"), capacity) for url in urls])
        self._timeout = config.sampler.request_timeout
        self._attempts = config.orchestrator.max_attempts
        self._outage = config.launch.start_timeout
        over_http = config.weights.transport == "http" and not config.eval.only  # an evaluation has no trainer
        self._weights = config.weights.address if over_http else ""
        self._pause = _PAUSE[config.sampler.on_update]
        # A request with a seed of its own slows vLLM down on a GPU; with chunked prefill it ends the CPU engine (0.32).
        self._vllm = config.sampler.backend == "vllm"
        self._latest: tuple[str, Version] | None = None  # manifest (path or URL), version
        self._session: aiohttp.ClientSession | None = None
        self.asked = self.answered = 0  # requests so far, refused and failed ones included

    async def __aenter__(self) -> Fleet:
        token = os.environ.get("INTELLECT_JAX_ADMIN_TOKEN")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def wait_ready(self, timeout: float) -> None:
        """Until every server answers its health check; raises FleetError after ``timeout`` seconds."""
        deadline = asyncio.get_running_loop().time() + timeout
        for server in self._servers.all:
            while not await self._healthy(server):
                if asyncio.get_running_loop().time() > deadline:
                    raise FleetError(f"{server.url} was not ready within {timeout:.0f} s")
                await asyncio.sleep(_READY_EVERY)

    async def generate(self, token_ids: Sequence[int], sampling_params: dict[str, Any], seed: int | None) -> Generation:
        """Samples a continuation of ``token_ids``.

        Servers that cannot be reached, or were restarted, are waited for up to ``launch.start_timeout``. Raises
        RequestRefused, BadGeneration for an answer that must not be trained on, and FleetError when every try failed or
        no server had room in time.
        """
        params = {**sampling_params, "logprobs": 1} | ({} if self._vllm or seed is None else {"seed": seed})
        body = {"model": "policy", "token_ids": list(token_ids), "sampling_params": params, "stream": False}
        failures: list[str] = []
        attempt, pauses, outage_ends = 0, 0, time.monotonic() + self._outage
        while attempt < self._attempts:
            try:
                async with self._servers.least_loaded(self._timeout) as server:
                    installs = server.installs
                    answer = await self._post(server, "/inference/v1/generate", body)
                    if lacks_weights(answer):
                        raise _ServerFailed(f"{server.url} has no weights yet", "no_weights", outage=True)
            except NoRoom as error:
                failures.append(str(error))
                break
            except _ServerFailed as error:
                failures = [*failures[-3:], str(error)]
                if error.code == "no_weights" and server.installs == installs:
                    server.version = None  # it was restarted; whoever sees that first installs for all
                await self._recover(server, _BACKOFF * 2 ** min(pauses, 4))
                pauses += 1
                if not error.outage or time.monotonic() > outage_ends:
                    attempt += 1
            else:
                return parse_generation(answer, len(token_ids), sampling_params)
        raise FleetError(f"generation failed: {'; '.join(failures)}")

    async def update(
        self, manifest_path: Path, version: Version, superseded: Callable[[], bool] = lambda: False
    ) -> bool:
        """Makes ``version`` the policy of every server; raises FleetError when none took it in time.

        A server that did not is left alone for a while and tried again with the next version. Returns False when it
        gave up because ``superseded()``: a newer version is there, and this one perhaps no longer.
        """
        # The path's last two parts are those of the URL under which the trainer serves the store.
        url = f"{self._weights}/{manifest_path.parent.name}/{manifest_path.name}"
        self._latest = (url if self._weights else str(manifest_path), version)
        deadline = time.monotonic() + self._outage
        told: set[str] = set()
        while True:
            outcomes = await asyncio.gather(*(self._try_update(server) for server in self._servers.all))
            failures = [failure for failure in outcomes if failure]
            for failure in {*map(str, failures)} - told:
                log.warning("version %s: %s", version, failure)
            told.update(map(str, failures))
            if len(failures) < len(outcomes):
                return True
            if superseded():
                return False
            gone = all(isinstance(failure, _ServerFailed) and failure.outage for failure in failures)
            if not gone or time.monotonic() > deadline:
                raise FleetError(f"no server took version {version}: {'; '.join(map(str, failures))}")
            await asyncio.sleep(1.0)

    async def _try_update(self, server: Server) -> Exception | None:
        """What went wrong, or None."""
        try:
            await self._install(server)
        except (_ServerFailed, RequestRefused) as error:
            self._servers.rest(server, _BACKOFF)
            if isinstance(error, _ServerFailed) and error.code == "damaged_weights" and self._latest:
                self.on_damaged(self._latest[1])
            return error
        return None

    async def _install(self, server: Server) -> None:
        """Brings a server to the latest version unless it has it."""
        async with server.updating:
            if self._latest is None or server.version == self._latest[1]:
                return
            manifest, version = self._latest
            await self._read_ahead(server, manifest, version)
            await self._post(server, f"/pause?{self._pause}")
            try:
                await self._post(server, "/start_weight_update")
                info = {"manifest": manifest, "version": str(version)}
                await self._post(server, "/update_weights", {"update_info": info})
                await self._post(server, "/finish_weight_update", {"weight_version": str(version)})
            except BaseException:
                await self._resume(server)
                raise
            await self._post(server, "/resume")
            server.version, server.installs = version, server.installs + 1

    async def _read_ahead(self, server: Server, manifest: str, version: Version) -> None:
        """Has the server read and verify a version while it samples; what is wrong with one is found here."""
        asked, deadline = {"version": str(version)}, time.monotonic() + self._timeout
        await self._call(server, "read_version", {"manifest": manifest, **asked})
        pause = _POLL
        while True:
            results = await self._call(server, "version_read", asked)
            if failed := next((result for result in results if result["error"]), None):
                code = "damaged_weights" if failed["damaged"] else ""
                raise _ServerFailed(f"{server.url}: {manifest}: {failed['error']}", code, outage=failed["damaged"])
            if all(result["done"] for result in results):
                return
            if time.monotonic() > deadline:
                raise _ServerFailed(f"{server.url} did not read {manifest} within {self._timeout:.0f} s")
            await asyncio.sleep(pause)
            pause = min(2 * pause, _READY_EVERY)

    async def _call(self, server: Server, method: str, kwargs: dict[str, str]) -> list[Any]:
        """What each worker of the server answers."""
        return (await self._post(server, "/collective_rpc", {"method": method, "kwargs": kwargs}))["results"]

    async def _resume(self, server: Server) -> None:
        """After a failed update, whose error is the one to show: a server that stays paused answers nobody."""
        try:
            await self._post(server, "/resume")
        except (_ServerFailed, RequestRefused) as error:
            log.warning("after a failed update: %s", error)

    async def _recover(self, server: Server, pause: float) -> None:
        """Gives a server that failed the weights that it lacks, or else a rest."""
        if self._latest is None or server.version == self._latest[1] or await self._try_update(server):
            self._servers.rest(server, pause)

    async def _healthy(self, server: Server) -> bool:
        assert self._session is not None
        try:
            async with self._session.get(f"{server.url}/health", timeout=aiohttp.ClientTimeout(5)) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def _post(self, server: Server, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The JSON answer; raises _ServerFailed for what another try may mend, RequestRefused for what none will."""
        self.asked += 1
        try:
            try:
                status, answer = await self._send(server, path, body)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):  # it closed an idle connection
                status, answer = await self._send(server, path, body)
        except (aiohttp.ClientError, TimeoutError) as error:
            unreachable = isinstance(error, (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError))
            outage = unreachable and not isinstance(error, TimeoutError)
            raise _ServerFailed(f"{server.url}{path}: {type(error).__name__} {error}", outage=outage) from error
        finally:
            self.answered += 1
        if status == 200 and isinstance(answer, dict):
            return answer
        problem = answer.get("error") if isinstance(answer, dict) else None
        problem = problem if isinstance(problem, dict) else {"message": answer}
        text = f"{server.url}{path} answered {status}: {problem.get('message')}"
        if 400 <= status < 500:
            raise RequestRefused(text)
        raise _ServerFailed(text, problem.get("code", ""), outage=status == 503)

    async def _send(self, server: Server, path: str, body: dict[str, Any] | None) -> tuple[int, Any]:
        """Status and answer, which is text where it is not JSON."""
        assert self._session is not None, "use `async with`"
        timeout = aiohttp.ClientTimeout(total=self._timeout)
        async with self._session.post(server.url + path, json=body or {}, timeout=timeout) as response:
            text = await response.text()
            try:
                return response.status, json.loads(text or "{}")
            except ValueError:
                return response.status, text[:200]


class _ServerFailed(Exception):
    def __init__(self, message: str, code: str = "", outage: bool = False):
        super().__init__(message)
        self.code = code
        self.outage = outage  # the server is not there, or not ready: a restart mends it


__all__ = ["BadGeneration", "Fleet", "FleetError", "Generation", "RequestRefused"]
