"""Who has which chunk of a parcel, and who gets which one from whom. No network, no files."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

GRANTS = 32  # chunks on their way from the origin at once, however large the fleet
ORIGIN = ""  # as a source, beside the URLs of relays


class Job(NamedTuple):
    chunk: int
    source: str  # URL of a relay, or ORIGIN


class Ask(NamedTuple):
    """What a reader says of itself when it asks for work."""

    relay: str  # URL where it serves what it has; empty: nowhere
    have: np.ndarray  # bool [chunks]: there and verified
    busy: np.ndarray  # bool [chunks]: on the way
    lost: frozenset[str]  # relays that failed it: dead, slow, or with other bytes


class Board:
    """The origin's, one for each parcel. Safe to use from several threads.

    Invariant: the origin grants a chunk only if no relay that the asker can reach has it, and nobody else is about to:
    was granted it in the last ``late`` seconds and has not said that it came. So in a sound fleet each chunk leaves the
    origin once, and what is lost with a relay once more.
    """

    def __init__(self, chunks: int, late: float, clock: Callable[[], float] = time.monotonic):
        self._late = late
        self._clock = clock
        self._have: dict[str, np.ndarray] = {}  # of each relay
        self._lost: dict[str, frozenset[str]] = {}
        self._granted = np.full(chunks, -np.inf)  # when, to a reader that will pass it on
        self._grantee = np.full(chunks, -1)  # which: its place in _have
        self._lock = threading.Lock()

    def work(self, ask: Ask, most: int) -> list[Job]:
        """Up to ``most`` chunks for the asker; none while all that it lacks is on its way to others."""
        with self._lock:
            if ask.relay:
                self._have[ask.relay] = ask.have
                self._lost[ask.relay] = ask.lost
            sources = [url for url in self._have if url != ask.relay and url not in ask.lost]
            held = np.zeros(ask.have.size, bool)
            for url in sources:
                held |= self._have[url]
            lacking = ~(ask.have | ask.busy)
            elsewhere = np.flatnonzero(lacking & held)
            here = self._grantable(lacking & ~held, ask.relay)[:most]
            # Some of each, so that the origin and the relays send at the same time.
            passed = min(elsewhere.size, max(most - here.size, most // 2))
            picked = random.sample(elsewhere.tolist(), passed)
            granted = here[: most - passed]
            if ask.relay:
                self._granted[granted] = self._clock()
                self._grantee[granted] = list(self._have).index(ask.relay)
            return [Job(int(c), ORIGIN) for c in granted] + [Job(c, self._choose(c, sources)) for c in picked]

    def whole(self) -> int:
        """Relays that have all of it."""
        with self._lock:
            return sum(bool(have.all()) for have in self._have.values())

    def _grantable(self, wanted: np.ndarray, asker: str) -> np.ndarray:
        """Of the wanted chunks those that the origin may send now."""
        under_way = self._clock() - self._granted < self._late
        for number, have in enumerate(self._have.values()):
            under_way &= (self._grantee != number) | ~have
        if np.count_nonzero(under_way) >= GRANTS:
            return np.zeros(0, int)
        if asker:  # what it was granted itself and lacks again went wrong
            under_way &= self._grantee != list(self._have).index(asker)
        return np.flatnonzero(wanted & ~under_way)

    def _choose(self, chunk: int, sources: list[str]) -> str:
        """One of those that have it: whom the fewest complain of."""
        having = [url for url in sources if self._have[url][chunk]]
        random.shuffle(having)
        return min(having, key=lambda url: sum(url in lost for lost in self._lost.values()))


def bits(text: str, count: int) -> np.ndarray:
    """bool [count] of what :func:`to_text` made; raises ValueError."""
    packed = np.frombuffer(bytes.fromhex(text), np.uint8)
    if packed.size != -(-count // 8):
        raise ValueError(f"{packed.size} bytes for {count} chunks")
    return np.unpackbits(packed, count=count).astype(bool)


def to_text(flags: np.ndarray) -> str:
    """One bit a chunk, as hex digits."""
    return np.packbits(flags).tobytes().hex()
