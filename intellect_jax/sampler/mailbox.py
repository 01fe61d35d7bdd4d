"""Calls that other threads post to the thread that owns the engine's state."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any

log = logging.getLogger(__name__)


class EngineStopped(Exception):
    """The engine takes no more work: it was stopped, or it failed."""


class Mailbox:
    """Any thread posts; one thread runs what was posted. Every call comes with the future that tells its fate."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], None], Future[Any]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed: EngineStopped | None = None

    def post(self, call: Callable[[], None], future: Future[Any]) -> None:
        """Has ``call`` run by the owner, or ``future`` fail when the owner ends first; raises EngineStopped when it
        has ended."""
        with self._lock:
            if self._closed:
                raise self._closed
            self._calls.put((call, future))

    def run(self, wait: float) -> None:
        """By the owner: runs everything posted; with nothing there, waits up to ``wait`` seconds for the first."""
        try:
            call, _ = self._calls.get(timeout=wait) if wait else self._calls.get_nowait()
            while True:
                call()
                call, _ = self._calls.get_nowait()
        except queue.Empty:
            return

    def close(self, error: EngineStopped) -> None:
        """By the owner: fails the calls that were not run, and refuses further ones, with ``error``."""
        with self._lock:
            self._closed = error
        while not self._calls.empty():
            settle(self._calls.get_nowait()[1], error=error)


def settle(future: Future[Any], result: Any = None, error: BaseException | None = None) -> None:
    """Ends a future that its owner may have cancelled meanwhile."""
    try:
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)
    except InvalidStateError:
        log.debug("a caller gave up before its answer was there")
