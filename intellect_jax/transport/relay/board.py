"""Who has which chunk of a parcel, and who gets which one from whom. No network, no files."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

GRANTS = 32  # chunks on their way from the origin at once, however large the fleet
GRANTED = 2  # of them in one answer, so that many readers get a part each
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


class _Relay(NamedTuple):
    number: int
    have: np.ndarray
    lost: frozenset[str]


class Board:
    """The origin's, one for each parcel. Safe to use from several threads.

    Invariant: the origin grants a chunk only if no relay that the asker can reach has it, and nobody else is about to:
    was granted it in the last ``late`` seconds and has not said that it came. So in a sound fleet each chunk leaves the
    origin once, and what is lost with a relay once more.
    """

    def __init__(self, chunks: int, late: float, clock: Callable[[], float] = time.monotonic):
        self._late = late
        self._clock = clock
        self._relays: dict[str, _Relay] = {}
        self._copies = np.zeros(chunks, int)  # relays that have it
        self._granted = np.full(chunks, -np.inf)  # when, to a reader that will pass it on and has not said that it came
        self._grantee = np.full(chunks, -1)  # number of that one
        self._complaints: Counter[str] = Counter()  # readers that a relay failed
        self._lock = threading.Lock()

    def work(self, ask: Ask, most: int) -> list[Job]:
        """Up to ``most`` chunks for the asker; none while all that it lacks is on its way to others."""
        with self._lock:
            number = self._heard(ask)
            held = self._copies - sum((self._relays[url].have for url in self._shunned(ask)), np.zeros_like(ask.have))
            lacking = ~(ask.have | ask.busy)
            granted = self._grantable(lacking & (held == 0), number)[: min(most, GRANTED)]
            if number >= 0:
                self._granted[granted], self._grantee[granted] = self._clock(), number
            elsewhere = np.flatnonzero(lacking & (held > 0)).tolist()
            picked = random.sample(elsewhere, min(len(elsewhere), most - granted.size))
            return [Job(int(c), ORIGIN) for c in granted] + [Job(c, self._choose(c, ask)) for c in picked]

    def whole(self) -> int:
        """Relays that have all of it."""
        with self._lock:
            return sum(bool(relay.have.all()) for relay in self._relays.values())

    def _heard(self, ask: Ask) -> int:
        """Notes what a relay says of itself; returns its number, -1 for a reader that passes nothing on."""
        if not ask.relay:
            return -1
        nothing = np.zeros_like(ask.have)
        old = self._relays.get(ask.relay) or _Relay(len(self._relays), nothing, frozenset())
        self._relays[ask.relay] = _Relay(old.number, ask.have, ask.lost)
        self._copies += ask.have.astype(int) - old.have
        self._granted[(self._grantee == old.number) & ask.have] = -np.inf
        self._complaints.subtract(old.lost)
        self._complaints.update(ask.lost)
        return old.number

    def _shunned(self, ask: Ask) -> set[str]:
        """Relays of which the asker gets nothing: itself, and those that failed it."""
        return {ask.relay, *ask.lost} & self._relays.keys()

    def _grantable(self, wanted: np.ndarray, asker: int) -> np.ndarray:
        """Of the wanted chunks those that the origin may send now."""
        under_way = self._clock() - self._granted < self._late
        if np.count_nonzero(under_way) >= GRANTS:
            return np.zeros(0, int)
        if asker >= 0:  # what it was granted itself and lacks again went wrong
            under_way &= self._grantee != asker
        return np.flatnonzero(wanted & ~under_way)

    def _choose(self, chunk: int, ask: Ask) -> str:
        """One of those that have it: of whom the fewest complain."""
        shunned = self._shunned(ask)
        having = [url for url, relay in self._relays.items() if relay.have[chunk] and url not in shunned]
        random.shuffle(having)
        return min(having, key=self._complaints.__getitem__)


def bits(text: str, count: int) -> np.ndarray:
    """bool [count] of what :func:`to_text` made; raises ValueError."""
    packed = np.frombuffer(bytes.fromhex(text), np.uint8)
    if packed.size != -(-count // 8):
        raise ValueError(f"{packed.size} bytes for {count} chunks")
    return np.unpackbits(packed, count=count).astype(bool)


def to_text(flags: np.ndarray) -> str:
    """One bit a chunk, as hex digits."""
    return np.packbits(flags).tobytes().hex()
