"""Which server of the fleet gets the next request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from intellect_jax.types import Version


class NoRoom(Exception):
    """Every server is full or rests."""


@dataclass(eq=False)
class Server:
    url: str
    capacity: int  # requests at once
    load: int = 0  # requests that it has from us
    resting_until: float = 0.0  # time.monotonic(); after a failure it gets nothing for a while
    version: Version | None = None  # the latest that it confirmed
    installs: int = 0  # versions that it confirmed
    updating: asyncio.Lock = field(default_factory=asyncio.Lock)


class Servers:
    """Least loaded first, never more than a server's capacity."""

    def __init__(self, servers: list[Server]):
        self.all = servers
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def least_loaded(self, timeout: float) -> AsyncIterator[Server]:
        """Holds a place on a server; raises NoRoom when none comes free within ``timeout`` seconds."""
        try:
            server = await asyncio.wait_for(self._take(), timeout)
        except TimeoutError:
            raise NoRoom(f"no server had room within {timeout} s") from None
        try:
            yield server
        finally:
            server.load -= 1
            await self._wake()

    def rest(self, server: Server, seconds: float) -> None:
        """Gives the server nothing for a while."""
        server.resting_until = time.monotonic() + seconds

    async def _take(self) -> Server:
        async with self._changed:
            while True:
                now = time.monotonic()
                awake = [s for s in self.all if s.resting_until <= now]
                free = [s for s in awake if s.load < s.capacity]
                if free:
                    server = min(free, key=lambda s: s.load / s.capacity)
                    server.load += 1
                    return server
                wake = min((s.resting_until for s in self.all if s.resting_until > now), default=now + 1.0)
                await self._wait(wake - now)

    async def _wait(self, seconds: float) -> None:
        """Until a place comes free or a resting server wakes."""
        try:
            await asyncio.wait_for(self._changed.wait(), seconds)
        except TimeoutError:
            return

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify()
