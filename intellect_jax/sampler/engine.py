"""Continuous batching: requests join and leave between decode steps, weights change under running requests.

One thread owns the device and all state; other threads post calls to it and get futures back. Between two rounds of
decoding it runs those calls, drops cancelled requests and admits waiting ones. Prefilling computes keys and values of
all tokens but the last; decoding processes the last one and samples. So every sampled token's logits come from the
weights that are installed when it is sampled, and recomputing a running request under new weights is prefilling again.
A request that finds no page for its next token waits again (the youngest does), and goes on by prefilling again too.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np

from intellect_jax.models.transformer import Params
from intellect_jax.sampler.mailbox import EngineStopped, Mailbox, settle
from intellect_jax.sampler.programs import Programs
from intellect_jax.sampler.requests import Request
from intellect_jax.sampler.seats import Seats
from intellect_jax.types import Version

log = logging.getLogger(__name__)

PauseMode = Literal["keep", "wait", "abort"]
_WORTH_A_PREFILL = 8  # requests join at once when they are at least one to so many running ones
_HOLD_BACK = 4  # rounds of decoding for which fewer of them wait for more to come
_IDLE_WAIT = 0.2  # seconds between looks at the stop flag while there is nothing to do


class UpdateRefused(Exception):
    """Weights cannot be installed now."""


@dataclass(frozen=True)
class Stats:
    generated: int  # tokens since start
    running: int
    waiting: int
    version: Version | None
    updates: int  # versions installed
    update_seconds: float  # of the latest installation, recomputation included
    paused: bool
    pages: int  # of the cache, that running requests have
    reused: int  # prompt tokens since start that were there already, computed for another request
    preempted: int  # times that a request had to wait again for want of pages


class Engine:
    """``on_update`` says what happens to running requests' keys and values: ``reprefill`` recomputes them, ``keep_kv``
    leaves them, ``wait`` refuses the update while anything runs (pause with mode ``wait`` first)."""

    def __init__(
        self,
        programs: Programs,
        on_update: str,
        warm_params: Callable[[], Params],
        on_warm: Callable[[], None] = lambda: None,
    ):
        """``warm_params`` makes parameters of the shapes and dtypes to come; the engine's thread compiles with them and
        then calls ``on_warm``."""
        self.ready = threading.Event()  # every program is compiled
        self.failure: BaseException | None = None
        self._programs = programs
        self._on_update = on_update
        self._warm_params = warm_params
        self._on_warm = on_warm
        self._seats = Seats(programs.shapes)
        self._waiting: deque[Request] = deque()
        self._held_back = 0  # rounds
        self._gate: Literal["open", "draining", "paused"] = "open"
        self._drained: list[Future[None]] = []
        self._params: Params | None = None
        self._version: Version | None = None
        self._generated = self._updates = self._preempted = 0
        self._update_seconds = 0.0
        self._mailbox = Mailbox()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # ---- what other threads call

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """Ends the thread; every unfinished request fails with EngineStopped. False when it still runs after
        ``timeout`` seconds (a compilation cannot be interrupted)."""
        self._stopping.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def submit(self, request: Request) -> None:
        """Queues the request; raises EngineStopped."""
        self._mailbox.post(lambda: self._waiting.append(request), request.future)

    def pause(self, mode: PauseMode) -> Future[None]:
        """Stops decoding: at once, keeping (``keep``) or ending (``abort``) what runs, or after it ended (``wait``)."""
        done: Future[None] = Future()
        self._mailbox.post(lambda: self._pause(mode, done), done)
        return done

    def resume(self) -> Future[None]:
        return self._call(self._resume)

    def install(self, params: Params, version: Version) -> Future[None]:
        """Makes ``params``, already on the device, the policy from the next sampled token on; may fail with
        UpdateRefused."""
        return self._call(lambda: self._install(params, version))

    def stats(self) -> Stats:
        return Stats(
            self._generated,
            len(self._seats.running),
            len(self._waiting),
            self._version,
            self._updates,
            self._update_seconds,
            self._gate == "paused",
            self._seats.pool.used,
            self._seats.pool.hits * self._seats.pool.size,
            self._preempted,
        )

    def _call(self, function: Callable[[], None]) -> Future[None]:
        done: Future[None] = Future()

        def run() -> None:
            try:
                function()
            except BaseException as error:
                settle(done, error=error)
                if not isinstance(error, UpdateRefused):
                    raise  # the engine's state may be broken
            else:
                settle(done)

        self._mailbox.post(run, done)
        return done

    # ---- the engine's thread

    def _run(self) -> None:
        try:
            self._warm_up()
            while not self._stopping.is_set():
                self._receive()
                self._drop_cancelled()
                if self._gate == "open" and self._params is not None:
                    self._admit()
                if self._gate != "paused" and self._seats.running:
                    self._make_room()
                    self._decode()
                if self._gate == "draining" and not self._seats.running:
                    self._drain_finished()
        except BaseException as error:
            log.exception("the engine failed")
            self.failure = error
        finally:
            self._close()

    def _warm_up(self) -> None:
        params, started = self._warm_params(), time.monotonic()
        self._cache = self._programs.new_cache()
        for cache in self._programs.warm_up(params, self._cache):
            self._cache = cache
            if self._stopping.is_set():
                return
        log.info("compiled every program in %.1f s", time.monotonic() - started)
        self._on_warm()
        self.ready.set()

    def _receive(self) -> None:
        """Runs what was posted; waits for it when there is nothing else to do."""
        waiting = self._waiting and self._params is not None
        idle = self._gate == "paused" or not (self._seats.running or waiting)
        self._mailbox.run(wait=_IDLE_WAIT if idle else 0)

    def _drop_cancelled(self) -> None:
        for slot, request in list(self._seats.running.items()):
            if request.future.cancelled():
                self._seats.leave(slot)
        if any(request.future.cancelled() for request in self._waiting):
            self._waiting = deque(r for r in self._waiting if not r.future.cancelled())

    def _admit(self) -> None:
        """Lets waiting requests join, several at a time: prefilling one by one costs more than a few idle slots."""
        joining = min(len(self._waiting), self._seats.free)
        if joining == 0:
            return
        few = joining * _WORTH_A_PREFILL < len(self._seats.running)
        if few and self._held_back < _HOLD_BACK:
            self._held_back += 1
            return
        self._held_back = 0
        while self._waiting and self._seats.free and self._seats.join(self._waiting[0]):
            self._waiting.popleft()
        self._fill()

    def _fill(self) -> None:
        plan = self._seats.fill()
        for batch in plan.batches:
            self._cache = self._programs.prefill(self._params, self._cache, batch)
        self._cache = self._programs.copy(self._cache, plan.copies)

    def _make_room(self) -> None:
        """Until every running request has pages for a round."""
        while (slot := self._seats.without_room()) is not None:
            self._waiting.appendleft(self._end(slot))
            self._preempted += 1

    def _decode(self) -> None:
        """One round: every running request gains up to ``decode_steps`` tokens."""
        assert self._version is not None
        self._cache, decoded = self._programs.decode(self._params, self._cache, *self._seats.inputs())
        tokens, logprobs = (x.T.tolist() for x in jax.device_get(decoded))
        for slot, request in list(self._seats.running.items()):
            self._generated += self._seats.advance(slot, tokens[slot], logprobs[slot], self._version)
            if request.finish_reason:
                settle(self._end(slot).future, request)

    def _end(self, slot: int) -> Request:
        """Takes a request out, with the experts of its tokens if it wants them."""
        request = self._seats.running[slot]
        if request.params.return_routed_experts and request.token_ids:
            routes = np.asarray(self._programs.routes(self._cache, self._seats.table(slot)))
            request.routed_experts = routes[: len(request.prompt) + len(request.token_ids) - 1]
        return self._seats.leave(slot)

    def _install(self, params: Params, version: Version) -> None:
        running = len(self._seats.running)
        if self._on_update == "wait" and running:
            raise UpdateRefused(f"{running} requests are running and sampler.on_update is wait: pause first")
        started = time.monotonic()
        self._params, self._version = self._programs.prepare(params), version
        if self._on_update == "reprefill":
            self._seats.rejoin()
            self._fill()
            jax.block_until_ready(self._cache)
        else:
            self._seats.forget()
        self._updates += 1
        self._update_seconds = time.monotonic() - started
        log.info("version %s installed under %d running requests in %.3f s", version, running, self._update_seconds)

    def _pause(self, mode: PauseMode, done: Future[None]) -> None:
        if mode == "wait" and self._gate != "paused":
            self._gate = "draining"
            self._drained.append(done)
            return
        self._gate = "paused"
        if mode == "abort":
            self._abort()
        settle(done)

    def _resume(self) -> None:
        self._drain_finished()
        self._gate = "open"

    def _drain_finished(self) -> None:
        self._gate = "paused"
        for done in self._drained:
            settle(done)
        self._drained.clear()

    def _abort(self) -> None:
        ended = [self._end(slot) for slot in list(self._seats.running)] + list(self._waiting)
        self._waiting.clear()
        for request in ended:
            request.finish_reason = "abort"
            settle(request.future, request)

    def _close(self) -> None:
        error = EngineStopped(f"the engine has stopped: {self.failure or 'it was asked to'}")
        self._mailbox.close(error)
        for request in [*self._seats.running.values(), *self._waiting]:
            settle(request.future, error=error)
        for done in self._drained:
            settle(done, error=error)
