"""Calls from the orchestrator to environment workers: the orchestrator's side.

One ROUTER socket; workers (:mod:`intellect_jax.transport.job_server`) connect, say every second that they are alive and
how many calls they take at once. Messages are JSON objects with a ``type``: ``call`` to a worker; ``alive``,
``result``, ``error``, ``timeout`` and ``bye`` from it. A worker that falls silent, says bye, or starts again under a
new identity is lost: its calls go to other workers. On its last try a call has a worker to itself, so that one call
which kills workers cannot fail the calls beside it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import time
import uuid
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import zmq
import zmq.asyncio

logger = logging.getLogger(__name__)

HEARTBEAT = 1.0  # seconds between a worker's signs of life
LOST_AFTER = 10.0  # seconds of silence after which both sides hold a worker for dead


class JobError(Exception):
    """The environment raised (the text says what), or every try lost its worker."""


class JobTimeout(Exception):
    """The call ran past its time limit, or no worker was there to run it."""


@dataclass(eq=False)
class _Call:
    request: dict[str, Any]  # env, method, payload, timeout
    future: asyncio.Future
    waiting_since: float
    losses: int = 0  # workers that it lost so far
    overdue_at: float = 0.0  # when the pool itself gives up on the worker's word

    def __str__(self) -> str:
        return f"{self.request['env']}.{self.request['method']}"


@dataclass(eq=False)
class _Worker:
    identity: bytes
    index: int
    slots: int
    last_seen: float
    calls: dict[str, _Call] = field(default_factory=dict)  # by job id
    serves_alone: bool = False


class JobPool:
    """Runs environment calls on whatever workers are connected to ``address``. Use as ``async with JobPool(…)``.

    ``lost_workers`` and ``retried_calls`` count since the start.
    """

    def __init__(
        self, address: str, *, max_attempts: int = 3, lost_after: float = LOST_AFTER, start_timeout: float = 300.0
    ):
        """Args:
        address: where to listen, tcp://host:port.
        max_attempts: workers that one call may lose before it fails.
        lost_after: seconds of silence after which a worker is lost.
        start_timeout: seconds that a call waits while there is no worker at all.
        """
        self.lost_workers = 0
        self.retried_calls = 0
        self._address, self._max_attempts = address, max_attempts
        self._lost_after, self._start_timeout = lost_after, start_timeout
        self._workers: dict[bytes, _Worker] = {}
        self._waiting: deque[_Call] = deque()
        self._last_worker_at = 0.0  # monotonic seconds
        self._ids = (f"{uuid.uuid4().hex}-{n}" for n in itertools.count())

    async def __aenter__(self) -> JobPool:
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.SNDHWM, 0)  # a ROUTER drops what exceeds it; slots bound what is under way
        self._socket.bind(self._address)
        self._tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._tend())]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        running = [call for worker in self._workers.values() for call in worker.calls.values()]
        for call in [*running, *self._waiting]:
            _fail(call, JobError(f"{call}: the pool was closed"))
        self._context.destroy(linger=0)

    @property
    def workers(self) -> int:
        """Workers connected now."""
        return len(self._workers)

    async def call(self, env: str, method: str, payload: dict[str, Any], timeout: float) -> Any:
        """The worker's JSON result of one call, which may run for ``timeout`` seconds once a worker has it.

        Raises JobTimeout when it runs longer or there is no worker for ``start_timeout`` seconds, and JobError when the
        environment raised or ``max_attempts`` workers were lost. Only lost workers are tried again.
        """
        request = {"env": env, "method": method, "payload": payload, "timeout": timeout}
        call = _Call(request, asyncio.get_running_loop().create_future(), waiting_since=time.monotonic())
        self._waiting.append(call)
        self._dispatch()
        try:
            return await call.future
        finally:  # also when the caller was cancelled
            with suppress(ValueError):
                self._waiting.remove(call)

    def _dispatch(self) -> None:
        """Sends waiting calls, in order, to the workers with the fewest."""
        while self._waiting:
            call = self._waiting[0]
            alone = 0 < self._max_attempts - 1 <= call.losses
            free = [w for w in self._workers.values() if _has_room(w, alone)]
            if call.future.done():
                self._waiting.popleft()
            elif free:
                self._waiting.popleft()
                self._send(min(free, key=lambda w: len(w.calls)), call, alone)
            else:
                return

    def _send(self, worker: _Worker, call: _Call, alone: bool) -> None:
        job = next(self._ids)
        worker.calls[job] = call
        worker.serves_alone = alone
        # The worker's own watch comes first: it knows which of its calls is to blame.
        call.overdue_at = time.monotonic() + call.request["timeout"] + self._lost_after
        body = json.dumps({"type": "call", "job": job, **call.request}).encode()
        self._socket.send_multipart([worker.identity, body])  # goes out at once: no limit on what is queued

    async def _receive(self) -> None:
        while True:
            frames = await self._socket.recv_multipart()
            try:
                identity, body = frames
                self._handle(identity, json.loads(body))
            except (KeyError, ValueError, TypeError):
                logger.exception("not a message of a worker: %.200r", frames)
            self._dispatch()

    def _handle(self, identity: bytes, message: dict[str, Any]) -> None:
        worker = self._workers.get(identity)
        if message["type"] == "alive":
            worker = worker or self._join(identity, message["index"], message["slots"])
        if worker is None:
            return  # a late word of a worker that was given up
        worker.last_seen = time.monotonic()
        if message["type"] == "bye":
            self._lose(worker, "it said goodbye")
        elif message["type"] != "alive":
            self._settle(worker.calls.pop(message["job"], None), message)

    def _join(self, identity: bytes, index: int, slots: int) -> _Worker:
        for old in [w for w in self._workers.values() if w.index == index]:
            self._lose(old, "it was started again")
        logger.info("environment worker %d is there", index)
        self._workers[identity] = _Worker(identity, index, slots, time.monotonic())
        return self._workers[identity]

    def _settle(self, call: _Call | None, message: dict[str, Any]) -> None:
        if call is None or call.future.done():
            return
        if message["type"] == "result":
            call.future.set_result(message["value"])
        elif message["type"] == "timeout":
            _fail(call, JobTimeout(f"{call} took longer than {call.request['timeout']:g} s"))
        else:
            _fail(call, JobError(f"{call}: {message['text']}"))

    async def _tend(self) -> None:
        """Notices what does not announce itself: silence, overdue calls, and that nobody comes."""
        while True:
            await asyncio.sleep(min(0.5, self._lost_after / 4))
            now = time.monotonic()
            for worker in list(self._workers.values()):
                if now - worker.last_seen > self._lost_after:
                    self._lose(worker, f"silent for {now - worker.last_seen:.1f} s")
                for job, call in list(worker.calls.items()):
                    if now > call.overdue_at:
                        self._settle(worker.calls.pop(job), {"type": "timeout"})
            for call in list(self._waiting):
                since = max(call.waiting_since, self._last_worker_at)
                if not self._workers and now - since > self._start_timeout:
                    _fail(call, JobTimeout(f"{call}: no environment worker at {self._address} for {now - since:.0f} s"))
            self._dispatch()

    def _lose(self, worker: _Worker, why: str) -> None:
        del self._workers[worker.identity]
        self._last_worker_at = time.monotonic()
        self.lost_workers += 1
        logger.warning("lost environment worker %d with %d calls: %s", worker.index, len(worker.calls), why)
        for call in reversed(worker.calls.values()):
            call.losses += 1
            if call.losses >= self._max_attempts:
                _fail(call, JobError(f"{call}: lost {call.losses} workers; the last: {why}"))
            elif not call.future.done():
                self.retried_calls += 1
                self._waiting.appendleft(call)


def _has_room(worker: _Worker, alone: bool) -> bool:
    if not worker.calls:
        return True
    return not alone and not worker.serves_alone and len(worker.calls) < worker.slots


def _fail(call: _Call, error: Exception) -> None:
    if not call.future.done():
        call.future.set_exception(error)
