"""HTTP between the orchestrator and its samplers: every call has a time limit, and every failure one of two kinds."""

from __future__ import annotations

import asyncio
import json
import math
import os
from typing import Any

import aiohttp

from intellect_jax.monitor.server_stats import Stats, parse
from intellect_jax.orchestrator.servers import Server


class FleetError(Exception):
    """No server of the fleet could do what was asked."""


class RequestRefused(Exception):
    """A server says that the request itself is wrong: trying again is no use."""


class ServerFailed(Exception):
    """Another try, here or elsewhere, may do."""

    def __init__(self, message: str, code: str = "", outage: bool = False, answered: bool = False):
        super().__init__(message)
        self.code = code
        self.answered = answered  # by the server itself: what was asked has failed there, and is over
        self.outage = outage  # the server is not there, or not ready: a restart mends it


class Wire:
    """Use it as an asynchronous context manager, within one event loop. ``timeout``: of one call, seconds."""

    def __init__(self, timeout: float):
        self.timeout = timeout
        self._session: aiohttp.ClientSession | None = None
        self.asked = self.answered = 0  # posts so far, refused and failed ones included

    async def __aenter__(self) -> Wire:
        token = os.environ.get("INTELLECT_JAX_ADMIN_TOKEN")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def post(self, server: Server, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The JSON answer; raises ServerFailed for what another try may mend, RequestRefused for what none will."""
        self.asked += 1
        try:
            status, answer = await self._unless_given_up(server, path, body)
        except (aiohttp.ClientError, TimeoutError) as error:
            unreachable = isinstance(error, (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError))
            outage = unreachable and not isinstance(error, TimeoutError)
            raise ServerFailed(f"{server.url}{path}: {type(error).__name__} {error}", outage=outage) from error
        finally:
            self.answered += 1
        if status == 200 and isinstance(answer, dict):
            return answer
        problem = answer.get("error") if isinstance(answer, dict) else None
        problem = problem if isinstance(problem, dict) else {"message": answer}
        text = f"{server.url}{path} answered {status}: {problem.get('message')}"
        if 400 <= status < 500:
            raise RequestRefused(text)
        raise ServerFailed(text, problem.get("code", ""), outage=status == 503, answered=True)

    async def healthy(self, server: Server, timeout: float = 5.0) -> bool:
        """Whether its health check answers 200 within ``timeout`` seconds."""
        try:
            status, _ = await self._get(server, "/health", timeout)
        except (aiohttp.ClientError, TimeoutError):
            return False
        return status == 200

    async def stats(self, server: Server, timeout: float) -> Stats | None:
        """What its /metrics says; None when it does not say it within ``timeout`` seconds."""
        try:
            status, text = await self._get(server, "/metrics", timeout)
            stats = parse(text) if status == 200 else None
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return None
        return stats if stats is not None and all(map(math.isfinite, stats.row().values())) else None

    async def weight_version(self, server: Server, timeout: float) -> str:
        """The name of the weights that it samples from; empty when there are none, or it does not say."""
        try:
            status, text = await self._get(server, "/weight_info", timeout)
            return str(json.loads(text)["weight_version"] or "") if status == 200 else ""
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError):
            return ""

    async def _unless_given_up(self, server: Server, path: str, body: dict[str, Any] | None) -> tuple[int, Any]:
        """Ends early, with ServerFailed, when ``Servers.give_up`` was called for the server."""
        call = asyncio.ensure_future(self._exchange(server, path, body))
        server.calls.add(call)
        try:
            await asyncio.wait({call})
            if call.cancelled():
                raise ServerFailed(f"{server.url}{path}: given up with its server", outage=True)
            return call.result()
        finally:
            server.calls.discard(call)
            call.cancel()

    async def _exchange(self, server: Server, path: str, body: dict[str, Any] | None) -> tuple[int, Any]:
        try:
            return await self._send(server, path, body)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):  # it closed an idle connection
            return await self._send(server, path, body)

    async def _send(self, server: Server, path: str, body: dict[str, Any] | None) -> tuple[int, Any]:
        """Status and answer, which is text where it is not JSON."""
        assert self._session is not None, "use `async with`"
        timeout = aiohttp.ClientTimeout(total=self.timeout)
        async with self._session.post(server.url + path, json=body or {}, timeout=timeout) as response:
            text = await response.text()
            try:
                return response.status, json.loads(text or "{}")
            except ValueError:
                return response.status, text[:200]

    async def _get(self, server: Server, path: str, timeout: float) -> tuple[int, str]:
        assert self._session is not None, "use `async with`"
        limit = aiohttp.ClientTimeout(total=timeout)
        async with self._session.get(server.url + path, timeout=limit) as response:
            return response.status, await response.text()
