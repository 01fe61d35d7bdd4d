"""Calls from the orchestrator to environment workers: the worker's side.

Two threads. The first owns the socket: it takes calls, passes replies on, sends signs of life and watches. The second
runs the environments' event loop, whose synchronous work goes to an executor. Nothing that an environment does can hold
up the first, except C code that keeps the interpreter lock; a timer in C ends the process then.

A call that ends at its time limit costs nothing more. One that cannot be ended (it blocks the loop, holds a thread, or
swallows its cancellation) is reported as the one to blame, and the process exits with STUCK: a fresh one takes its
place and the calls beside it are retried.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import logging
import os
import threading
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import zmq

from intellect_jax.transport.jobs import HEARTBEAT, LOST_AFTER

logger = logging.getLogger(__name__)

STUCK = 70  # exit code of a worker that a call blocked
GRACE = 1.0  # seconds that a call may take to end after its limit
REPLIES = "inproc://replies"

Handler = Callable[[str, str, dict[str, Any]], Awaitable[Any]]


@dataclass(frozen=True)
class _Job:
    id: str
    env: str
    method: str
    payload: dict[str, Any]
    timeout: float
    deadline: float  # monotonic seconds


_current: ContextVar[_Job | None] = ContextVar("current job", default=None)


class JobServer:
    """Serves calls to ``handler(env, method, payload)``, which returns a JSON value or raises."""

    def __init__(self, address: str, index: int, handler: Handler, *, slots: int = 32, lost_after: float = LOST_AFTER):
        """Args:
        address: the pool's, tcp://host:port.
        index: the worker's own number; a worker that is started again keeps it.
        slots: calls that run at once.
        lost_after: seconds after which the pool holds a silent worker for dead.
        """
        self._address, self._handler, self._lost_after = address, handler, lost_after
        self._alive = {"type": "alive", "index": index, "slots": slots}
        self._stop = threading.Event()
        self._work: dict[object, _Job] = {}  # every task and thread that has not ended yet, and whose it is
        self._job_of_task: WeakKeyDictionary[asyncio.Task, _Job | None] = WeakKeyDictionary()
        self._network, self._inside = zmq.Context(), zmq.Context()
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(_WatchedExecutor(self._work, slots))
        self._loop.set_task_factory(self._make_task)
        self._loop_alive_at = time.monotonic()

    def stop(self) -> None:
        """Makes :meth:`run` return; may be called from a signal handler."""
        self._stop.set()

    def run(self) -> None:
        """Serves until :meth:`stop`. Ends the process itself, with STUCK, when a call blocks it, and with 0 when calls
        still run at the stop: threads cannot be stopped."""
        self._socket = self._network.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, uuid.uuid4().bytes)
        self._socket.setsockopt(zmq.SNDHWM, 0)  # without a pool, signs of life wait for one; sending never blocks
        self._socket.connect(self._address)
        replies = self._inside.socket(zmq.PULL)
        replies.bind(REPLIES)
        thread = threading.Thread(target=self._run_loop, name="environments", daemon=True)
        thread.start()
        self._exchange(replies)
        self._say_bye()
        if self._work:
            _end_process(0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        thread.join(timeout=10)
        replies.close()

    def _exchange(self, replies: zmq.Socket) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(replies, zmq.POLLIN)
        period = min(HEARTBEAT, self._lost_after / 4)
        next_heartbeat = 0.0
        while not self._stop.is_set():
            if time.monotonic() >= next_heartbeat:
                next_heartbeat = time.monotonic() + period
                # C code that keeps the interpreter lock stops this loop, but not this timer: it prints and exits.
                faulthandler.dump_traceback_later(self._lost_after, exit=True)
                self._send(self._alive)
            ready = dict(poller.poll(int(period * 500)))  # milliseconds: half a period
            if self._socket in ready:
                self._take(json.loads(self._socket.recv()))
            if replies in ready:
                self._socket.send(replies.recv())
            self._watch()

    def _take(self, message: dict[str, Any]) -> None:
        request = {name: message[name] for name in ("env", "method", "payload", "timeout")}
        job = _Job(message["job"], **request, deadline=time.monotonic() + message["timeout"])
        self._work[job.id] = job
        context = copy_context()
        context.run(_current.set, job)
        self._loop.call_soon_threadsafe(lambda: self._loop.create_task(self._serve(job), context=context))

    async def _serve(self, job: _Job) -> None:
        try:
            async with asyncio.timeout(job.deadline - time.monotonic()) as limit:
                value = await self._handler(job.env, job.method, job.payload)
            reply = json.dumps({"type": "result", "job": job.id, "value": value}, allow_nan=False)
        except BaseException as error:  # an environment may well call sys.exit
            if limit.expired():
                reply = json.dumps({"type": "timeout", "job": job.id})
            else:
                logger.warning("%s.%s raised\n%s", job.env, job.method, traceback.format_exc())
                reply = json.dumps({"type": "error", "job": job.id, "text": f"{type(error).__name__}: {error}"})
        self._work.pop(job.id, None)
        self._replies.send_string(reply)

    def _run_loop(self) -> None:
        self._replies = self._inside.socket(zmq.PUSH)
        self._replies.connect(REPLIES)
        tick = self._loop.create_task(self._tick())
        self._loop.run_forever()
        tick.cancel()
        self._loop.run_until_complete(asyncio.gather(tick, return_exceptions=True))
        self._loop.close()
        self._replies.close()

    async def _tick(self) -> None:
        while True:
            self._loop_alive_at = time.monotonic()
            await asyncio.sleep(GRACE / 4)

    def _make_task(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task:
        """Remembers whose task it is: what a job's tasks start inherits their context."""
        task = asyncio.Task(coroutine, loop=loop, **options)
        context = options.get("context")
        self._job_of_task[task] = _current.get() if context is None else context.get(_current)
        return task

    def _watch(self) -> None:
        """Ends the process when a job's task or thread has outlived its limit; names the jobs that are to blame."""
        now = time.monotonic()
        guilty = {job.id: job for job in list(self._work.values()) if now > job.deadline + GRACE}
        if not guilty:
            return
        if now - self._loop_alive_at > GRACE:  # then by whoever runs in it, perhaps not by those who wait for it
            task = asyncio.current_task(self._loop)
            job = self._job_of_task.get(task) if task else None
            guilty = {job.id: job} if job else {}
        for job in guilty.values():
            logger.error("%s.%s still runs beyond its %g s: this worker ends", job.env, job.method, job.timeout)
            self._send({"type": "timeout", "job": job.id})
        faulthandler.dump_traceback(all_threads=True)
        self._say_bye()
        _end_process(STUCK)

    def _say_bye(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._send({"type": "bye"})
        self._socket.close(linger=1000)  # milliseconds to send what waits
        self._network.term()

    def _send(self, message: dict[str, Any]) -> None:
        self._socket.send(json.dumps(message).encode())


def _end_process(code: int) -> None:
    """Although threads still run."""
    logging.shutdown()
    os._exit(code)


class _WatchedExecutor(ThreadPoolExecutor):
    """Keeps an account in ``work`` of the threads that jobs still hold, also after their tasks were cancelled."""

    def __init__(self, work: dict[object, _Job], threads: int):
        super().__init__(threads, thread_name_prefix="environment")
        self._account = work

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        future = super().submit(fn, *args, **kwargs)
        job = _current.get()
        if job is not None:
            self._account[future] = job
            future.add_done_callback(lambda f: self._account.pop(f, None))
        return future
