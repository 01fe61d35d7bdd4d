"""The bounded queue of packed batches between orchestrator and trainer, over ZeroMQ.

The trainer pulls: it asks for the batch of a step, and the orchestrator answers when that batch is cut. A batch stays
until the trainer asks for the next one, so a trainer that dies while it holds a batch finds the same batch again.

Messages are one JSON frame, and for a batch a second frame with its arrays as safetensors. Trainer to orchestrator:
``hello`` {version, manifest, ledger}, ``next`` {step, part, parts}, ``published`` {version, manifest}, ``done`` {}.
Orchestrator to trainer: ``batch`` {step, info}, ``wait`` {reason} every few seconds while there is none, and ``who`` {}
where a trainer speaks that never said hello: the orchestrator was restarted, and the trainer introduces itself again.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import zmq
import zmq.asyncio
from safetensors import numpy as safetensors_numpy

from intellect_jax.types import PackedBatch, Version

SIGN_OF_LIFE_S = 2.0
POLL_MS = 200


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
        self._greeted = False
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

    async def offer(self, batch: PackedBatch) -> None:
        """Puts a batch into the queue.

        Raises:
            asyncio.QueueFull: the queue holds ``size`` batches already.
        """
        if self.full():
            raise asyncio.QueueFull(f"{self.queued} batches are waiting for the trainer")
        self._batches[batch.step] = batch
        await self._answer()

    def reset(self, step: int) -> None:
        """Forgets every batch: a trainer (re)started after ``step``."""
        self._batches.clear()
        self._taken = max([step, *(request["step"] for request in self._waiting.values())])

    async def serve(self) -> None:
        """Answers trainers until cancelled."""
        beat = asyncio.create_task(self._signs_of_life())
        try:
            while True:
                identity, frame = await self._socket.recv_multipart()
                await self._handle(identity, json.loads(frame))
                self.on_change()
        finally:
            beat.cancel()

    def close(self) -> None:
        self._socket.close()

    async def _handle(self, identity: bytes, message: dict[str, Any]) -> None:
        if message["type"] == "hello":  # what was asked for before it belongs to a trainer that is gone
            self._greeted = True
            self._waiting.clear()
        if not self._greeted:
            await self._socket.send_multipart([identity, json.dumps({"type": "who"}).encode()])
        elif message["type"] == "next":
            self._take(identity, message)
            await self._answer()
        else:
            self.messages.put_nowait(message)

    def _take(self, identity: bytes, request: dict[str, Any]) -> None:
        self._waiting[identity] = request
        self._taken = max(self._taken, request["step"])
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
            frame = json.dumps({"type": "wait", "reason": self.reason}).encode()
            for identity in list(self._waiting):
                await self._socket.send_multipart([identity, frame])


class BatchClient:
    """The trainer's side; blocking, one per trainer process. Process 0 also reports what it published."""

    def __init__(self, address: str, *, timeout: float, part: int = 0, parts: int = 1):
        self.timeout = timeout
        self.part, self.parts = part, parts
        self._hello: dict[str, Any] = {}  # as it would introduce itself to an orchestrator that starts now
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

    def done(self) -> None:
        self._send({"type": "done"})

    def next(self, step: int, stopping: Callable[[], bool] = lambda: False) -> PackedBatch | None:
        """The batch of ``step``; blocks until it is cut, or until ``stopping()``: then None.

        Raises:
            TimeoutError: no sign of life from the orchestrator for ``timeout`` seconds.
        """
        self._send({"type": "next", "step": step, "part": self.part, "parts": self.parts})
        heard = time.monotonic()
        while not stopping():
            if not self._socket.poll(POLL_MS):
                if time.monotonic() - heard > self.timeout:
                    raise TimeoutError(
                        f"no sign of life from the orchestrator for {self.timeout:g} s while waiting for batch {step}"
                    )
                continue
            heard = time.monotonic()
            frames = self._socket.recv_multipart()
            if json.loads(frames[0])["type"] == "who":
                self._send(self._hello)
                self._send({"type": "next", "step": step, "part": self.part, "parts": self.parts})
            elif len(frames) == 2:
                batch = decode(frames)
                if batch.step == step:  # a batch of an abandoned request is not ours
                    return batch
        return None

    def close(self) -> None:
        self._socket.close()

    def _send(self, message: dict[str, Any]) -> None:
        self._socket.send(json.dumps(message).encode())
