"""Continuous batching: requests join and leave between decode steps, weights change under running requests.

One thread owns the device and all state; other threads post calls to it and get futures back. Between two rounds of
decoding it runs those calls, drops cancelled requests and admits waiting ones. Prefilling computes keys and values of
all tokens but the last; decoding processes the last one and samples. So every sampled token's logits come from the
weights that are installed when it is sampled, and recomputing a running request under new weights is prefilling again.
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
from intellect_jax.sampler.batches import prefill_batches
from intellect_jax.sampler.mailbox import EngineStopped, Mailbox, settle
from intellect_jax.sampler.programs import Programs
from intellect_jax.sampler.requests import Request
from intellect_jax.sampler.slots import SlotTable
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
        self._table = SlotTable(programs.shapes.slots)
        self._waiting: deque[Request] = deque()
        self._held_back = 0  # rounds
        self._gate: Literal["open", "draining", "paused"] = "open"
        self._drained: list[Future[None]] = []
        self._params: Params | None = None
        self._version: Version | None = None
        self._generated = self._updates = 0
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
            len(self._table.running),
            len(self._waiting),
            self._version,
            self._updates,
            self._update_seconds,
            self._gate == "paused",
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
                if self._gate != "paused" and self._table.running:
                    self._decode()
                if self._gate == "draining" and not self._table.running:
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
        idle = self._gate == "paused" or not (self._table.running or waiting)
        self._mailbox.run(wait=_IDLE_WAIT if idle else 0)

    def _drop_cancelled(self) -> None:
        for slot, request in list(self._table.running.items()):
            if request.future.cancelled():
                self._table.leave(slot)
        if any(request.future.cancelled() for request in self._waiting):
            self._waiting = deque(r for r in self._waiting if not r.future.cancelled())

    def _admit(self) -> None:
        """Lets waiting requests join, several at a time: prefilling one by one costs more than a few idle slots."""
        joining = min(len(self._waiting), self._table.free)
        if joining == 0:
            return
        few = joining * _WORTH_A_PREFILL < len(self._table.running)
        if few and self._held_back < _HOLD_BACK:
            self._held_back += 1
            return
        self._held_back = 0
        self._prefill([self._table.join(self._waiting.popleft()) for _ in range(joining)])

    def _prefill(self, slots: list[int]) -> None:
        requests = {slot: self._table.running[slot] for slot in slots}
        for batch in prefill_batches(requests, self._programs.shapes):
            self._cache, routed = self._programs.prefill(
                self._params, self._cache, batch.tokens, batch.lengths, batch.row_of_slot
            )
            asking = [s for s in batch.slots if requests[s].params.return_routed_experts]
            if asking:
                routes = np.asarray(routed)
                for slot in asking:
                    row = batch.row_of_slot[slot]
                    self._keep_routes(requests[slot], 0, routes[row, : batch.lengths[row]])

    def _decode(self) -> None:
        """One round: every running request gains up to ``decode_steps`` tokens."""
        assert self._version is not None
        inputs = self._table.leading_inputs(self._programs.shapes.slot_buckets)
        positions = inputs.positions.copy()
        self._cache, decoded = self._programs.decode(self._params, self._cache, inputs)
        tokens, logprobs, routed = jax.device_get(decoded)
        tokens, logprobs = tokens.T.tolist(), logprobs.T.tolist()
        for slot, request in list(self._table.running.items()):
            taken = self._table.advance(slot, tokens[slot], logprobs[slot], self._version)
            self._generated += taken
            if request.params.return_routed_experts:
                self._keep_routes(request, positions[slot], routed[:taken, slot])
            if request.finish_reason:
                settle(self._table.leave(slot).future, request)

    @staticmethod
    def _keep_routes(request: Request, start: int, routes: np.ndarray) -> None:
        if request.routed_experts is None:
            length = len(request.prompt) + request.params.max_tokens - 1
            request.routed_experts = np.zeros((length, *routes.shape[1:]), np.int16)
        request.routed_experts[start : start + len(routes)] = routes

    def _install(self, params: Params, version: Version) -> None:
        running = list(self._table.running)
        if self._on_update == "wait" and running:
            raise UpdateRefused(f"{len(running)} requests are running and sampler.on_update is wait: pause first")
        started = time.monotonic()
        self._params, self._version = params, version
        if self._on_update == "reprefill":
            self._prefill(running)
            jax.block_until_ready(self._cache)
        self._updates += 1
        self._update_seconds = time.monotonic() - started
        log.info(
            "version %s installed under %d running requests in %.3f s",
            version,
            len(running),
            self._update_seconds,
        )

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
        ended = [self._table.leave(slot) for slot in list(self._table.running)] + list(self._waiting)
        self._waiting.clear()
        for request in ended:
            request.finish_reason = "abort"
            settle(request.future, request)

    def _close(self) -> None:
        error = EngineStopped(f"the engine has stopped: {self.failure or 'it was asked to'}")
        self._mailbox.close(error)
        for request in [*self._table.running.values(), *self._waiting]:
            settle(request.future, error=error)
        for done in self._drained:
            settle(done, error=error)
