"""The trainer's end of one server's communicator: a thread that sends what it is given, one version after the other."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

import jax
import numpy as np

from intellect_jax.transport.nccl.library import Communicator, Library, NcclError
from intellect_jax.transport.nccl.meeting import Meeting
from intellect_jax.transport.reading import WeightError
from intellect_jax.types import Version

log = logging.getLogger(__name__)

MEET_S = 30.0  # longest wait for the other workers of a server
JOIN_S = 60.0  # longest that NCCL may take to connect
SLOWEST = 64 << 20  # bytes a second; a server that takes fewer is given up


@dataclass(frozen=True)
class Lying:
    """A tensor where it lies on the trainer's GPU, and how.

    ``shape``: Hugging Face's; ``turned``: it lies the other way round, as the transpose of that.
    """

    name: str
    dtype: str  # as in safetensors
    shape: tuple[int, ...]
    turned: bool
    array: jax.Array  # on one device; it stays as long as this does
    start: int  # elements, in it
    count: int

    @property
    def pointer(self) -> int:
        return self.array.unsafe_buffer_pointer() + self.start * self.array.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self.count * self.array.dtype.itemsize

    def to_json(self) -> list:
        return [self.name, self.dtype, list(self.shape), self.turned]


class Group:
    """``name``'s ``size`` workers and us."""

    def __init__(self, name: str, size: int, library: Library, device: jax.Device):
        """Raises NcclError."""
        self.name, self.size = name, size
        self.unique_id = library.unique_id()
        self.meeting = Meeting(size, MEET_S)
        self.joined = False
        self.failure = ""
        self.have: Counter[Version] = Counter()  # how many workers do, as they say
        self._library, self._device = library, device
        self._scratch = jax.block_until_ready(jax.device_put(np.zeros(1, np.float32), device))
        self._jobs: SimpleQueue[tuple[Version, Sequence[Lying]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"nccl-{name}", daemon=True)

    def connect(self) -> None:
        """Begins to; the workers must at the same time."""
        self.joined = True
        self._thread.start()

    def send(self, version: Version, tensors: Sequence[Lying]) -> None:
        """Begins to; raises WeightError where the workers must join anew."""
        if self.failure:
            raise WeightError(f"{self.name} must join again: {self.failure}")
        self.have.clear()
        self._jobs.put((version, tensors))

    def close(self, timeout: float = 0.0) -> None:
        """Ends the thread, for which this waits at most ``timeout`` seconds."""
        self.failure = self.failure or "closed"
        self._jobs.put(None)
        if timeout and self.joined:
            self._thread.join(timeout)

    def _run(self) -> None:
        comm: Communicator | None = None
        try:
            with self._limited(JOIN_S, lambda: comm):
                local = self._device.local_hardware_id
                comm = Communicator(self._library, self.unique_id, 1 + self.size, 0 if local is None else local)
                comm.greet(self._scratch.unsafe_buffer_pointer())
            log.info("%s is connected by NCCL, %d workers", self.name, self.size)
            while job := self._jobs.get():
                tensors = job[1]
                with self._limited(JOIN_S + sum(t.nbytes for t in tensors) / SLOWEST, lambda: comm):
                    for each in tensors:
                        comm.send(each.pointer, each.count, each.dtype)
                    comm.wait()
                del job, tensors  # else its memory is held until the next
        except Exception as error:  # whatever it is: the workers must not wait for a thread that is gone
            self._fail(str(error) or repr(error))
        if comm is not None:
            with contextlib.suppress(NcclError):
                comm.close()

    def _fail(self, why: str) -> None:
        if not self.failure:
            log.warning("weights by NCCL to %s: %s", self.name, why)
        self.failure = self.failure or why

    @contextlib.contextmanager
    def _limited(self, seconds: float, comm: Callable[[], Communicator | None]) -> Iterator[None]:
        """NCCL waits for ever for a peer that is gone. After ``seconds`` the group has failed, and a wait is ended."""

        def end() -> None:
            self._fail(f"gave up after {seconds:.0f} s")
            if (held := comm()) is not None:
                held.give_up()

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()
        if self.failure:
            raise NcclError(self.failure)
