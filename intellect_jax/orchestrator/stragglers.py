"""Who holds a weight update up: one line in the log and one count for each server and version."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from intellect_jax.orchestrator.servers import Server
from intellect_jax.types import Version

log = logging.getLogger(__name__)

TIMES = 3.0  # the median of the others
SHORTEST = 1.0  # seconds; an update that is over so soon holds nobody up


class Stragglers:
    """Invariant: a server counts at most once a version.

    A straggler's update takes longer than TIMES the median of the others, or failed while others took the version. One
    that waited for its turn when the next version came is none.
    """

    def __init__(self) -> None:
        self.count = 0  # so far
        self._version: Version | None = None
        self._begun: dict[Server, float] = {}  # time.monotonic(), of those that are at this version
        self._took: dict[Server, float] = {}  # seconds, of those that have it
        self._told: set[Server] = set()
        self._excused: set[Server] = set()

    def next_version(self, version: Version, previous: Version | None, serving: Sequence[Server]) -> None:
        """Whoever has not taken ``previous`` now, when ``version`` is there, although another has, is late."""
        if version == self._version:
            return
        if previous is not None and any(server.version == previous for server in serving):
            for server in serving:
                late = server.version not in (None, previous) and server not in self._excused
                if late and server not in self._told:
                    self._tell(server, f"{server} still has version {server.version} when {version} is there")
        self._version = version
        for forgotten in (self._begun, self._took, self._told, self._excused):
            forgotten.clear()

    @contextmanager
    def timed(self, server: Server, version: Version) -> Iterator[None]:
        """Around the installation of ``version``; one that fails has no time."""
        begun = time.monotonic()
        if version == self._version:
            self._begun[server] = begun
        try:
            yield
            if version == self._version:
                self._took[server] = time.monotonic() - begun
        finally:
            self._begun.pop(server, None)

    def excuse(self, servers: Iterable[Server]) -> None:
        """These wait for their turn."""
        self._excused.update(servers)

    def look(self) -> None:
        """Tells of those that take too long."""
        now = time.monotonic()
        seconds = self._took | {server: now - begun for server, begun in self._begun.items()}
        for server in seconds.keys() - self._told:
            others = [took for other, took in self._took.items() if other is not server]
            if others and seconds[server] > max(SHORTEST, TIMES * statistics.median(others)):
                so_far = "so far, " if server in self._begun else ""
                what = f"its update to version {self._version} took {seconds[server]:.1f} s"
                self._tell(server, f"{server}: {what} {so_far}that of the others {statistics.median(others):.1f} s")

    def _tell(self, server: Server, text: str) -> None:
        self._told.add(server)
        self.count += 1
        log.warning("straggler: %s", text)
