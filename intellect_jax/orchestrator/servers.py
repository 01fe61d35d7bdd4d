"""Which server of the fleet gets the next request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from intellect_jax.types import Version

PATIENCE = 5.0  # seconds that a turn waits for room where its conversation is: less than a long prefix costs elsewhere


class NoRoom(Exception):
    """Every server is full or rests."""


@dataclass(eq=False)
class Server:
    url: str
    limit: int  # requests at once
    name: str = ""  # of one that joined while the run goes on
    load: int = 0  # requests that it has from us
    serving: bool = True  # False: it joins, or does not answer its health checks, or left
    resting_until: float = 0.0  # time.monotonic(); after a failure it gets nothing for a while
    version: Version | None = None  # the latest that it confirmed
    installs: int = 0  # versions that it confirmed
    updating: asyncio.Lock = field(default_factory=asyncio.Lock)
    calls: set[asyncio.Future[Any]] = field(default_factory=set)  # what it has not answered yet

    def usable(self, now: float) -> bool:
        return self.serving and self.resting_until <= now

    def __str__(self) -> str:
        return f"{self.name} ({self.url})" if self.name else self.url


@dataclass(eq=False)
class Conversation:
    """The turns of one rollout: hand the same object to each of them."""

    server: Server | None = None  # that had the latest turn


@dataclass(eq=False)
class _Waiter:
    conversation: Conversation
    place: asyncio.Future[Server]
    patient_until: float  # time.monotonic(); then any server will do


class Servers:
    """Hands out places, first come, first served among those that one server can serve.

    Invariants: a server gets a request only while it serves, does not rest, and has less than its limit (a limit that
    falls interrupts nothing). A conversation goes on where it is while that server is usable and has room within
    PATIENCE; any other request goes to the least loaded, relative to its limit. Nobody waits while a place that would
    do is free.
    """

    def __init__(self, servers: list[Server]):
        self.all = servers
        self._waiting: dict[_Waiter, None] = {}  # in order of arrival

    @property
    def waiting(self) -> int:
        """Requests that wait for room here."""
        return len(self._waiting)

    @property
    def serving(self) -> list[Server]:
        return [server for server in self.all if server.serving]

    @asynccontextmanager
    async def place(self, conversation: Conversation, timeout: float) -> AsyncIterator[Server]:
        """Holds a place on a server; raises NoRoom when none comes free within ``timeout`` seconds."""
        server = await self._take(conversation, timeout)
        conversation.server = server
        try:
            yield server
        finally:
            server.load -= 1
            self.dispatch()

    def rest(self, server: Server, seconds: float) -> None:
        """Gives the server nothing for a while."""
        server.resting_until = time.monotonic() + seconds
        asyncio.get_running_loop().call_later(seconds + 0.001, self.dispatch)

    def give_up(self, server: Server) -> None:
        """Fails what the server has not answered, so that it is tried elsewhere."""
        for call in list(server.calls):
            call.cancel()

    def remove(self, server: Server) -> None:
        """Takes the server out of the fleet."""
        server.serving = False
        self.all.remove(server)
        self.give_up(server)
        self.dispatch()

    def dispatch(self) -> None:
        """Gives the places that are free to those that wait; to be called whenever one may have come free."""
        now = time.monotonic()
        for waiter in list(self._waiting):
            if not any(s.usable(now) and s.load < s.limit for s in self.all):
                return
            server = None if waiter.place.done() else self._choose(waiter, now)
            if server is not None:
                server.load += 1
                waiter.place.set_result(server)
                del self._waiting[waiter]

    def _choose(self, waiter: _Waiter, now: float) -> Server | None:
        home = waiter.conversation.server
        if home is not None and home.usable(now) and now < waiter.patient_until:
            return home if home.load < home.limit else None
        free = [s for s in self.all if s.usable(now) and s.load < s.limit]
        return min(free, key=lambda s: s.load / s.limit, default=None)

    async def _take(self, conversation: Conversation, timeout: float) -> Server:
        loop = asyncio.get_running_loop()
        waiter = _Waiter(conversation, loop.create_future(), time.monotonic() + PATIENCE)
        self._waiting[waiter] = None
        self.dispatch()
        if conversation.server is not None and not waiter.place.done():
            loop.call_later(PATIENCE + 0.001, self.dispatch)
        try:
            async with asyncio.timeout(timeout):
                return await waiter.place
        except BaseException as error:
            if waiter.place.done() and not waiter.place.cancelled():  # it came at the very moment
                waiter.place.result().load -= 1
                self.dispatch()
            if isinstance(error, TimeoutError):
                raise NoRoom(f"no server had room within {timeout} s") from None
            raise
        finally:
            self._waiting.pop(waiter, None)
