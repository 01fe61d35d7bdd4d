"""The bounded queue of packed batches between orchestrator and trainer, over ZeroMQ.

The trainer pulls: it asks for the batch of a step, and the orchestrator answers when that batch is cut. A batch stays
until the trainer asks for the next one, so a trainer that dies while it holds a batch finds the same batch again.

Messages are one JSON frame, and for a batch a second frame with its arrays as safetensors. Trainer to orchestrator:
``hello`` {version, manifest, ledger}, ``next`` {step, part, parts}, ``published`` {version, manifest}, ``done`` {}.
Orchestrator to trainer: ``batch`` {step, info}, ``wait`` {reason} every few seconds while there is none, ``damaged``
{version} when no sampler can read what was published, ``bye`` {} to a ``done``, and ``who`` {} where a trainer asks
that never said hello: the orchestrator was restarted, and the trainer introduces itself again. ``next`` and ``done``
are repeated until answered: an orchestrator that dies loses what it read.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import zmq
import zmq.asyncio
from safetensors import numpy as safetensors_numpy

from intellect_jax.types import PackedBatch, Version

log = logging.getLogger(__name__)

SIGN_OF_LIFE_S = 2.0
POLL_MS = 200
ASK_AGAIN_S = 5.0
CUT = "cut"  # in a batch's info: a number above 0 by which parts of the same batch know each other


def _frame(kind: str, **fields: Any) -> bytes:
    return json.dumps({"type": kind, **fields}).encode()


def encode(batch: PackedBatch, part: int = 0, parts: int = 1) -> list[bytes]:
    """The frames of one trainer process's share: rows part, part + parts, … of every microbatch."""
    arrays = {name: np.ascontiguousarray(a[:, part::parts]) for name, a in batch.arrays.items()}
    head = {"type": "batch", "step": batch.step, "info": batch.info}
    return [json.dumps(head).encode(), safetensors_numpy.save(arrays)]


def decode(frames: list[bytes]) -> PackedBatch:
    head = json.loads(frames[0])
    return PackedBatch(head["step"], safetensors_numpy.load(frames[1]), head["info"])


class BatchServer:
    """The orchestrator's side; owns the queue. Runs inside the event loop: ``await serve()`` in a task.

    ``on_change`` is called whenever a trainer took a batch or sent a message; ``messages`` holds the latter. Invariant:
    at most ``size`` batches that no trainer has asked for.
    """

    def __init__(self, address: str, size: int, on_change: Callable[[], None] = lambda: None):
        self.size = size
        self.on_change = on_change
        self.reason = "the orchestrator is starting"  # what a waiting trainer is told
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()  # hello, published, done
        self._batches: dict[int, PackedBatch] = {}
        self._taken = 0  # highest step that a trainer has asked for
        self.found = 0  # batches that lay ready when the trainer last asked for a new one
        self._greeted = False
        self._open = False  # between a hello and the reset that answers it nothing may be queued
        self.epoch = 0  # grows with every hello and reset: what was begun before belongs to an abandoned lineage
        self._damaged: Version | None = None  # what waiting trainers are to publish again
        self._waiting: dict[bytes, dict[str, Any]] = {}
        self._socket = zmq.asyncio.Context.instance().socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(address)

    @property
    def queued(self) -> int:
        """Batches that no trainer has asked for yet."""
        return sum(step > self._taken for step in self._batches)

    def full(self) -> bool:
        return self.queued >= self.size

    async def offer(self, batch: PackedBatch, epoch: int) -> None:
        """Puts a batch into the queue, unless its making began in an earlier ``epoch``.

        Raises:
            asyncio.QueueFull: the queue holds ``size`` batches already.
        """
        if epoch != self.epoch or not self._open:
            return
        if self.full():
            raise asyncio.QueueFull(f"{self.queued} batches are waiting for the trainer")
        batch.info[CUT] = secrets.randbelow(2**31 - 1) + 1
        self._batches[batch.step] = batch
        await self._answer()

    def reset(self, step: int) -> None:
        """Starts a queue whose first batch is ``step`` + 1, for the trainer that said hello last."""
        self._batches.clear()
        self._open = True
        self.epoch += 1
        self._taken = max([step, *(request["step"] for request in self._waiting.values())])

    def damaged(self, version: Version) -> None:
        """Tells the trainer, once it waits, that ``version`` cannot be read."""
        self._damaged = version

    async def serve(self) -> None:
        """Answers trainers until cancelled."""
        beat = asyncio.create_task(self._signs_of_life())
        try:
            while True:
                identity, *frames = await self._socket.recv_multipart()
                try:
                    await self._handle(identity, json.loads(frames[0]))
                except (ValueError, KeyError, IndexError, TypeError) as error:
                    log.warning("a message that no trainer sends was ignored: %r", error)
                self.on_change()
        finally:
            beat.cancel()

    def close(self) -> None:
        self._socket.close()

    async def _handle(self, identity: bytes, message: dict[str, Any]) -> None:
        if message["type"] == "hello":  # what was asked for before it belongs to a trainer that is gone
            self._greeted, self._open = True, False
            self.epoch += 1
            self._waiting.clear()
            self._batches.clear()
        if not self._greeted:
            if message["type"] in ("next", "done"):  # one question is enough
                await self._socket.send_multipart([identity, _frame("who")])
        elif message["type"] == "next":
            self._take(identity, message)
            await self._answer()
        else:
            self.messages.put_nowait(message)
            if message["type"] == "done":
                await self._socket.send_multipart([identity, _frame("bye")])

    def _take(self, identity: bytes, request: dict[str, Any]) -> None:
        self._waiting[identity] = request
        if request["step"] > self._taken:
            self.found, self._taken = self.queued, request["step"]
        for old in [step for step in self._batches if step < request["step"]]:
            del self._batches[old]

    async def _answer(self) -> None:
        for identity, request in list(self._waiting.items()):
            batch = self._batches.get(request["step"])
            if batch is not None:
                del self._waiting[identity]
                await self._socket.send_multipart([identity, *encode(batch, request["part"], request["parts"])])

    async def _signs_of_life(self) -> None:
        while True:
            await asyncio.sleep(SIGN_OF_LIFE_S)
            frame = _frame("wait", reason=self.reason)
            if self._damaged is not None and self._waiting:
                frame, self._damaged = _frame("damaged", version=str(self._damaged)), None
            for identity in list(self._waiting):
                await self._socket.send_multipart([identity, frame])


class BatchClient:
    """The trainer's side; blocking, one per trainer process. Only process 0 says hello and what it published."""

    def __init__(self, address: str, *, timeout: float, part: int = 0, parts: int = 1):
        self.timeout = timeout
        self.part, self.parts = part, parts
        self._hello: dict[str, Any] = {}  # as it would introduce itself to an orchestrator that starts now
        self._step = -1  # whose batch it waits for
        self._asked = self._heard = 0.0  # monotonic seconds
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 2000)
        self._socket.connect(address)

    def hello(self, version: Version, manifest: str, ledger: dict[str, Any]) -> None:
        """Says which published version training starts from, and the orchestrator's ledger as of that step."""
        self._hello = {"type": "hello", "version": str(version), "manifest": manifest, "ledger": ledger}
        self._send(self._hello)

    def published(self, version: Version, manifest: str, ledger: dict[str, Any]) -> None:
        """Says that a step made a new version; ``ledger`` is that of the step's batch."""
        self._hello = {"type": "hello", "version": str(version), "manifest": manifest, "ledger": ledger}
        self._send({"type": "published", "version": str(version), "manifest": manifest})

    def done(self, timeout: float = 60.0) -> None:
        """Says that training has ended; returns when the orchestrator has heard it, or after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            self._send({"type": "done"})
            asked = time.monotonic()
            while time.monotonic() - asked < ASK_AGAIN_S and self._socket.poll(POLL_MS):
                kind = json.loads(self._socket.recv_multipart()[0])["type"]
                if kind == "bye":
                    return
                if kind == "who":
                    self._send(self._hello)
                    break
        log.warning("the orchestrator did not hear within %.0f s that training has ended", timeout)

    def next(
        self,
        step: int,
        stopping: Callable[[], bool] = lambda: False,
        on_damaged: Callable[[Version], None] = lambda version: None,
    ) -> PackedBatch | None:
        """This process's part of the batch of ``step``; blocks until it is cut, or until ``stopping()``: then None.

        Whoever calls again for the same step goes on waiting. ``on_damaged`` is called with a version that no sampler
        can read.

        Raises:
            TimeoutError: no sign of life from the orchestrator for ``timeout`` seconds.
        """
        if step != self._step:
            self._step = step
            self._heard = time.monotonic()
            self._ask()
        while not stopping():
            now = time.monotonic()
            if not self._socket.poll(POLL_MS):
                if now - self._heard > self.timeout:
                    raise TimeoutError(
                        f"no sign of life from the orchestrator for {self.timeout:g} s while waiting for batch {step}"
                    )
                if now - max(self._asked, self._heard) > ASK_AGAIN_S:
                    self._ask()
                continue
            self._heard = now
            frames = self._socket.recv_multipart()
            head = json.loads(frames[0])
            if head["type"] == "who" and self._hello:
                self._send(self._hello)
                self._ask()
            elif head["type"] == "damaged":
                on_damaged(Version.parse(head["version"]))
            elif len(frames) == 2:
                batch = decode(frames)
                if batch.step == step:  # a batch of an abandoned request is not ours
                    self._step = -1
                    return batch
        return None

    def _ask(self) -> None:
        self._send({"type": "next", "step": self._step, "part": self.part, "parts": self.parts})
        self._asked = time.monotonic()

    def close(self) -> None:
        self._socket.close()

    def _send(self, message: dict[str, Any]) -> None:
        self._socket.send(json.dumps(message).encode())
