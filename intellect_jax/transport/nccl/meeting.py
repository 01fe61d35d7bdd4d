"""Where all workers of a server ask the same thing at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from intellect_jax.transport.reading import WeightError


class Meeting:
    """Collectives need all: what the last of ``size`` workers to come finds is the answer to each of them."""

    def __init__(self, size: int, timeout: float):
        self._size, self._timeout = size, timeout
        self._barrier = self._new()
        self._lock = threading.Lock()
        self._find: Callable[[], Any] = lambda: None
        self._found: Any = None

    def __call__(self, find: Callable[[], Any]) -> Any:
        """What ``find()`` returns or raises; raises WeightError when not all come within ``timeout`` seconds."""
        self._find, barrier = find, self._barrier
        try:
            barrier.wait()
        except threading.BrokenBarrierError:
            with self._lock:
                if self._barrier is barrier:  # the first to be told makes the next one
                    self._barrier = self._new()
            raise WeightError(f"not all {self._size} workers asked within {self._timeout:.0f} s") from None
        if isinstance(self._found, Exception):
            raise self._found
        return self._found

    def _new(self) -> threading.Barrier:
        return threading.Barrier(self._size, self._look, self._timeout)

    def _look(self) -> None:
        try:
            self._found = self._find()
        except Exception as error:
            self._found = error
