"""Looks at every server every second: who is well, how much it should have at once, who joins and who leaves."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from intellect_jax import membership
from intellect_jax.membership import Member
from intellect_jax.orchestrator.pressure import Bounds, steer
from intellect_jax.orchestrator.servers import Server, Servers
from intellect_jax.orchestrator.updates import Updates
from intellect_jax.orchestrator.wire import Wire

log = logging.getLogger(__name__)

EVERY = 1.0  # seconds between two looks
LOOK = 3.0  # seconds that an answer to one may take
MISSES = 3  # looks in a row that fail before a server gets no more requests
_AGAIN = 5.0  # seconds before a server that could not take the weights is tried again
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass
class _Health:
    misses: int = 0  # looks in a row that failed
    answered: float = field(default_factory=time.monotonic)
    admit_after: float = 0.0  # time.monotonic()
    welcome: str = "joined the fleet"  # what is said when it gets requests


class Watch:
    """Invariants: a server that failed MISSES looks in a row gets no request until it answers again and has the latest
    weights; so does one that joins. After ``lost_after`` seconds without an answer, what it still had is tried
    elsewhere. One that does not tell its /metrics keeps its limit. No look waits for another server's."""

    def __init__(self, servers: Servers, wire: Wire, updates: Updates, bounds: Bounds, lost_after: float):
        self._servers, self._wire, self._updates, self._bounds = servers, wire, updates, bounds
        self._lost_after = lost_after
        self._health: dict[Server, _Health] = {}
        self._looking: dict[Server, asyncio.Task[None]] = {}
        self._out_of_reach: set[Member] = set()  # those of which that was said

    async def run(self, run_dir: Path) -> None:
        """Until cancelled. ``run_dir`` is where servers that join leave word."""
        try:
            while True:
                self._compare(await asyncio.to_thread(membership.members, run_dir))
                for server in self._servers.all:
                    if server not in self._looking:
                        self._start_look(server)
                await asyncio.sleep(EVERY)
        finally:
            for task in list(self._looking.values()):
                task.cancel()

    def _start_look(self, server: Server) -> None:
        def over(task: asyncio.Task[None]) -> None:
            del self._looking[server]
            if not task.cancelled() and task.exception() is not None:
                log.error("looking at %s failed: %r", server, task.exception(), exc_info=task.exception())

        self._looking[server] = asyncio.create_task(self._look_at(server))
        self._looking[server].add_done_callback(over)

    async def _look_at(self, server: Server) -> None:
        health = self._health.setdefault(server, _Health())
        if not await self._wire.healthy(server, LOOK):
            self._missed(server, health)
            return
        health.misses, health.answered = 0, time.monotonic()
        if not server.serving:
            if health.answered >= health.admit_after:
                await self._admit(server, health)
        elif not self._updates.is_paused(server):
            await self._steer(server)

    def _missed(self, server: Server, health: _Health) -> None:
        health.misses += 1
        if server.serving and health.misses >= MISSES:
            server.serving = False
            health.welcome = "answers again and is back in the fleet"
            log.warning("%s failed %d health checks in a row: it gets no requests until it answers", server, MISSES)
        if time.monotonic() - health.answered > self._lost_after:
            self._servers.give_up(server)

    async def _admit(self, server: Server, health: _Health) -> None:
        """Gives it the latest weights, then requests."""
        named = await self._wire.weight_version(server, LOOK)
        if named != str(server.version):
            server.version = None  # it was restarted, or is new
        failure = await self._updates.bring(server)
        if failure is not None:
            health.admit_after = time.monotonic() + _AGAIN
            log.warning("%s could not be given the latest weights: %s", server, failure)
        elif self._updates.is_current(server) and server in self._servers.all:
            server.serving = True
            what = f"with version {server.version}" if server.version else "before the first version"
            log.info("%s %s %s", server, health.welcome, what)
            self._servers.dispatch()

    async def _steer(self, server: Server) -> None:
        stats = await self._wire.stats(server, LOOK)
        if stats is not None and not self._updates.is_paused(server):
            server.limit = steer(self._bounds, server.limit, server.load, self._servers.waiting > 0, stats)
            self._servers.dispatch()

    def _compare(self, members: list[Member]) -> None:
        """Those who left word with those whom we know."""
        known = {server.name: server for server in self._servers.all if server.name}
        urls = {member.name: member.url for member in members}
        for name, server in known.items():
            if urls.get(name) != server.url:
                self._servers.remove(server)
                self._health.pop(server, None)
                log.info("%s left the fleet", server)
        taken = {server.url for server in self._servers.all}
        for member in members:
            if member.url not in taken and self._within_reach(member):
                server = Server(member.url, self._bounds.start, member.name, serving=False)
                self._servers.all.append(server)

    def _within_reach(self, member: Member) -> bool:
        if member.here or urlsplit(member.url).hostname not in _LOOPBACK:
            return True
        if member not in self._out_of_reach:
            self._out_of_reach.add(member)
            log.warning(
                "%s at %s is on %s and listens there only for itself: give it --config.sampler.urls=http://%s:PORT",
                *(member.name, member.url, member.host, member.host),
            )
        return False
