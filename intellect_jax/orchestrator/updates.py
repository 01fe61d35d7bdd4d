"""Rolls weight updates through the fleet: a bounded number of servers pauses at once, and whoever lags is named."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ml_collections import ConfigDict

from intellect_jax.orchestrator.read_ahead import read_ahead
from intellect_jax.orchestrator.servers import Server, Servers
from intellect_jax.orchestrator.stragglers import Stragglers
from intellect_jax.orchestrator.wire import FleetError, RequestRefused, ServerFailed, Wire
from intellect_jax.types import Version

log = logging.getLogger(__name__)

_REST = 0.25  # seconds, of a server whose update failed
_AGAIN = 1.0  # seconds between two tries of a fleet that is gone, and between two looks for stragglers
_NONE = Version(-1, -1)
_PAUSE = {"reprefill": "mode=keep", "keep_kv": "mode=keep&clear_cache=false", "wait": "mode=wait"}


class Updates:
    """Brings servers to the latest version.

    Invariants: of the servers that generate, at most ``sampler.paused_at_once`` are paused at the same time; with 0, at
    most half of those that serve, but one. A server that lacks weights generates nothing and waits for no turn. Whoever
    waited gets the version that is the latest when its turn comes.
    """

    def __init__(self, config: ConfigDict, servers: Servers, wire: Wire, on_damaged: Callable[[Version], None]):
        self.latest: tuple[str, Version] | None = None  # manifest (path or URL), version
        self.stragglers = Stragglers()
        self._servers, self._wire, self._on_damaged = servers, wire, on_damaged
        transport, at = config.weights.transport, urlsplit(config.weights.address).netloc
        from_trainer = transport != "folder" and not config.eval.only  # an evaluation has no trainer
        self._weights = f"{transport}://{at}" if from_trainer else ""
        self._outage = config.launch.start_timeout
        self._at_once = config.sampler.paused_at_once
        self._pause = _PAUSE[config.sampler.on_update]
        self._installing: dict[Server, asyncio.Task[Any]] = {}  # those that have their turn, and who is at it
        self._paused = 0  # turns taken
        self._turn_over = asyncio.Event()
        self._left: set[asyncio.Task[Exception | None]] = set()  # of superseded rolls, still at it

    async def roll(self, manifest: Path, version: Version, superseded: Callable[[], bool], whole: bool) -> bool:
        """See ``Fleet.update``."""
        # The path's last two parts are those of the URL under which the trainer serves the store.
        url = f"{self._weights}/{manifest.parent.name}/{manifest.name}"
        previous, self.latest = self.latest, (url if self._weights else str(manifest.absolute()), version)
        self.stragglers.next_version(version, previous and previous[1], self._servers.serving)
        deadline = time.monotonic() + self._outage
        told: set[str] = set()
        while True:
            outcomes = await self._round(superseded if not whole else lambda: False)
            if outcomes is None:
                return False
            failures = [failure for failure in outcomes if failure]
            for failure in {*map(str, failures)} - told:
                log.warning("version %s: %s", version, failure)
            told.update(map(str, failures))
            if len(failures) < len(outcomes):
                return True
            if superseded():
                return False
            gone = all(isinstance(failure, ServerFailed) and failure.outage for failure in failures)
            if not gone or time.monotonic() > deadline:
                raise FleetError(f"no server took version {version}: {'; '.join(map(str, failures))}")
            await asyncio.sleep(_AGAIN)

    async def bring(self, server: Server, superseded: Callable[[], bool] = lambda: False) -> Exception | None:
        """Brings the server to the latest version unless it has it; what went wrong, or None.

        One that had to wait for its turn is let go when the version is superseded by then.
        """
        try:
            async with server.updating:
                if self.latest is not None and not self.is_current(server):
                    await read_ahead(self._wire, server, *self.latest)
                    async with self._turn(server) as waited:
                        if waited and superseded():
                            return _Overtaken()
                        await self._install(server)
        except (ServerFailed, RequestRefused) as error:
            self._servers.rest(server, _REST)
            if isinstance(error, ServerFailed) and error.code == "damaged_weights" and self.latest:
                self._on_damaged(self.latest[1])
            return error
        return None

    def is_current(self, server: Server) -> bool:
        """Whether the server has the latest version, or there is none yet."""
        return self.latest is None or server.version == self.latest[1]

    def is_paused(self, server: Server) -> bool:
        return server in self._installing

    async def close(self) -> None:
        """Ends what superseded updates left behind; servers are resumed."""
        await _end(self._left)

    async def _round(self, superseded: Callable[[], bool]) -> list[Exception | None] | None:
        """What went wrong with each server; None when a newer version came before all had this one."""
        due = self._servers.serving or self._servers.all  # one that does not answer gets the latest when it is back
        oldest_first = sorted(due, key=lambda server: server.version or _NONE)
        tasks = {asyncio.create_task(self.bring(server, superseded)): server for server in oldest_first}
        pending = set(tasks)
        try:
            while pending:
                _, pending = await asyncio.wait(pending, timeout=_AGAIN, return_when=asyncio.FIRST_COMPLETED)
                self.stragglers.look()
                if pending and superseded():
                    pending = self._leave(pending, tasks)
                    return None
            overtaken = [server for task, server in tasks.items() if isinstance(task.result(), _Overtaken)]
            self.stragglers.excuse(overtaken)
            return None if overtaken else [task.result() for task in tasks]
        finally:
            await _end(pending)

    def _leave(
        self, pending: set[asyncio.Task[Exception | None]], tasks: dict[asyncio.Task[Exception | None], Server]
    ) -> set[asyncio.Task[Exception | None]]:
        """Lets those finish that are at it; returns the others, who wait for a turn that the newer version takes."""
        at_it = {task for task in pending if self._installing.get(tasks[task]) is task}
        for task in at_it:
            self._left.add(task)
            task.add_done_callback(self._left.discard)
        waiting = pending - at_it
        self.stragglers.excuse(tasks[task] for task in waiting)
        return waiting

    @asynccontextmanager
    async def _turn(self, server: Server) -> AsyncIterator[bool]:
        """While few enough others are paused; says whether that had to be waited for."""
        waited, counts = False, server.serving and server.version is not None
        while counts and self._paused >= self._bound():
            waited = True
            self._turn_over.clear()
            await self._turn_over.wait()
        task = asyncio.current_task()
        assert task is not None
        self._paused += counts
        self._installing[server] = task
        try:
            yield waited
        finally:
            self._paused -= counts
            del self._installing[server]
            self._turn_over.set()

    def _bound(self) -> int:
        return self._at_once or max(1, len(self._servers.serving) // 2)

    async def _install(self, server: Server) -> None:
        if self.latest is None:
            return
        manifest, version = self.latest
        untouched = True
        with self.stragglers.timed(server, version):
            try:
                await self._wire.post(server, f"/pause?{self._pause}")
                await self._begin(server)
                untouched = False
                try:
                    info = {"manifest": manifest, "version": str(version)}
                    await self._wire.post(server, "/update_weights", {"update_info": info})
                except (ServerFailed, RequestRefused) as error:
                    untouched = isinstance(error, RequestRefused) or error.answered
                    raise
                await self._wire.post(server, "/finish_weight_update", {"weight_version": str(version)})
            except BaseException:
                if untouched:
                    await self._resume(server)
                else:
                    # It may have the new weights under the old name, and must not sample: it stays paused until it is
                    # updated again.
                    server.version = None
                raise
            await self._wire.post(server, "/resume")
            server.version, server.installs = version, server.installs + 1

    async def _begin(self, server: Server) -> None:
        """Ends what an orchestrator that died, or gave up, has left open: vLLM begins nothing beside it."""
        try:
            await self._wire.post(server, "/start_weight_update")
        except ServerFailed as error:
            if "already active" not in str(error):
                raise
            log.warning("%s: an update that nobody finished is ended", server)
            await self._wire.post(server, "/finish_weight_update")
            await self._wire.post(server, "/start_weight_update")

    async def _resume(self, server: Server) -> None:
        """After a failed update, whose error is the one to show: a server that stays paused answers nobody."""
        try:
            await self._wire.post(server, "/resume")
        except (ServerFailed, RequestRefused) as error:
            log.warning("after a failed update: %s", error)


class _Overtaken(Exception):
    """A newer version came before the server's turn."""


async def _end(tasks: set[asyncio.Task[Exception | None]]) -> None:
    for task in list(tasks):
        task.cancel()
    if tasks:
        await asyncio.gather(*tasks, return_exceptions=True)
