"""One parcel from the origin and from relays into a folder, by several streams, each chunk checked as it comes."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from intellect_jax.transport.reading import WeightError, hash_of
from intellect_jax.transport.relay.board import ORIGIN, to_text
from intellect_jax.transport.relay.client import SourceFailed, call, get_range
from intellect_jax.transport.relay.parcel import Parcel

log = logging.getLogger(__name__)

STREAMS = 4
PAUSE_S = 0.1  # while all that is lacking is on its way to others
STALL_S = 60.0  # without a new chunk: given up
JOURNAL = ".chunks"  # what has come, one "chunk hash" a line, so that a new process goes on here


class DiskProblem(WeightError):
    """A version cannot be kept here: above all, the disk is full."""


class Stalled(WeightError):
    """Nothing comes any more: the origin is gone, or cannot be reached."""


class Download:
    """A parcel on its way into ``folder``. What has come stays there when it fails, unless the disk is the reason.

    Invariant: ``have`` says of a chunk that the bytes in the file are those of the hash that the origin told. Only
    they are passed on.
    """

    def __init__(
        self,
        parcel: Parcel,
        folder: Path,
        origin: str,
        relay: str,
        token: str,
        stopping: Callable[[], bool] = lambda: False,
    ):
        self.parcel, self.folder = parcel, folder
        self.received: Counter[str] = Counter()  # bytes by source
        self._origin, self._relay, self._token, self._stopping = origin, relay, token, stopping
        self._have = np.zeros(parcel.count, bool)
        self._busy = np.zeros(parcel.count, bool)
        self._lost: set[str] = set()  # relays
        self._trouble = ""  # what the origin failed with last
        self._problem: WeightError | None = None
        self._lock = threading.Condition()
        self._asking = threading.Lock()
        self._files: dict[str, BinaryIO] = {}
        self._moved = time.monotonic()  # when the last chunk came

    def there(self, name: str, start: int, stop: int) -> bool:
        """Whether this range of a file can be passed on."""
        chunks = self.parcel.chunks_of(name, start, stop)
        return len(chunks) > 0 and bool(self._have[chunks.start : chunks.stop].all())

    def run(self) -> None:
        """Until all is there; raises WeightError when the origin is gone, or no chunk came in STALL_S seconds."""
        try:
            with contextlib.ExitStack() as files:
                self._open(files)
                streams = [threading.Thread(target=self._stream, daemon=True) for _ in range(STREAMS)]
                for stream in streams:
                    stream.start()
                for stream in streams:
                    stream.join()
        except OSError as error:
            self._fail(DiskProblem(f"cannot write {self.folder}: {error.strerror}"))
        if self._problem:
            raise self._problem
        if not self._have.all():
            raise WeightError(f"version {self.parcel.version}: reading it was stopped")
        (self.folder / JOURNAL).unlink()
        announce(self.parcel, self._origin, self._relay, self._token)

    def _open(self, files: contextlib.ExitStack) -> None:
        """Makes all files in their full size, so that a full disk is known at once, and looks what is there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, size in self.parcel.files.items():
            descriptor = os.open(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            self._files[name] = files.enter_context(os.fdopen(descriptor, "r+b", buffering=0))
            os.ftruncate(descriptor, size)
            if size and hasattr(os, "posix_fallocate"):  # not on macOS
                os.posix_fallocate(descriptor, 0, size)
        self._resume()
        self._files[JOURNAL] = files.enter_context((self.folder / JOURNAL).open("ab", buffering=0))
        self._files[JOURNAL].write(f"{self.parcel.tag}\n".encode())

    def _resume(self) -> None:
        """Takes over what an earlier download of the same parcel left, as far as it matches its hashes."""
        journal = self.folder / JOURNAL
        lines = journal.read_text(errors="replace").split("\n") if journal.exists() else []
        if self.parcel.tag not in lines[:1]:
            journal.unlink(missing_ok=True)
            return
        for line in lines:
            chunk, _, right = line.partition(" ")
            if right and chunk.isdigit() and int(chunk) < self.parcel.count:
                name, start, stop = self.parcel.span(int(chunk))
                here = os.pread(self._files[name].fileno(), stop - start, start)
                self._have[int(chunk)] |= hash_of(here) == right
        log.info("version %s: %d of %d chunks were there", self.parcel.version, self._have.sum(), self._have.size)

    def _stream(self) -> None:
        try:
            while not self._ended():
                before = self._moved
                jobs = self._ask()
                for chunk, source, right in jobs:
                    self._get(chunk, source, right)
                if not jobs:
                    self._wait(before)
        except WeightError as error:
            self._fail(error)
        except OSError as error:
            self._fail(DiskProblem(f"cannot write {self.folder}: {error.strerror}"))
        except Exception as error:  # a thread's own end would be silent
            log.exception("version %s", self.parcel.version)
            self._fail(WeightError(f"version {self.parcel.version}: {type(error).__name__}: {error}"))

    def _wait(self, moved: float) -> None:
        """Until a chunk comes; not at all when one came since ``moved``, while the origin was asked: it may be the
        last one."""
        with self._lock:
            self._lock.wait_for(lambda: self._moved != moved or self._problem, PAUSE_S)

    def _ended(self) -> bool:
        if time.monotonic() - self._moved > STALL_S:
            why = self._trouble or f"from {self._origin}"
            raise Stalled(f"version {self.parcel.version}: nothing came for {STALL_S:.0f} s: {why}")
        return self._problem is not None or self._stopping() or bool(self._have.all())

    def _ask(self) -> list[tuple[int, str, str]]:
        """Chunks to get next, with source and hash; marks them as busy."""
        with self._asking:  # one at a time: two answers at once would give the same chunks
            with self._lock:
                question = _question(self.parcel, self._relay, self._have, self._busy, self._lost)
            try:
                answer = call(self._origin, self.parcel.work_path, self._token, question)
                jobs = [(int(chunk), str(source), str(right)) for chunk, source, right in answer["jobs"]]
            except SourceFailed as error:
                if 400 <= error.status < 500:
                    raise WeightError(f"version {self.parcel.version}: {error}") from error
                self._rest(error)
                return []
            except (KeyError, TypeError, ValueError) as error:
                raise WeightError(f"{self._origin}: no answer of an origin: {error!r}") from error
            with self._lock:
                jobs = [job for job in jobs if 0 <= job[0] < self.parcel.count and not self._have[job[0]]]
                self._busy[[chunk for chunk, _, _ in jobs]] = True
        return jobs

    def _get(self, chunk: int, source: str, right: str) -> None:
        """Brings one chunk; a source that fails or sends other bytes is asked no more, but the origin is."""
        name, start, stop = self.parcel.span(chunk)
        try:
            if source in self._lost or self._stopping():
                return
            raw = get_range(source or self._origin, f"{self.parcel.path}/{name}", self._token, start, stop)
            self.received[source] += len(raw)
            if hash_of(raw) != right:
                raise SourceFailed(f"{source or self._origin}: bytes {start}-{stop} of {name} do not match their hash")
            self._keep(chunk, name, start, raw, right)
        except SourceFailed as error:
            log.warning("version %s: %s", self.parcel.version, error)
            if source == ORIGIN:
                self._rest(error)
            else:
                self._lost.add(source)
        finally:
            with self._lock:
                self._busy[chunk] = False

    def _keep(self, chunk: int, name: str, start: int, raw: bytes, right: str) -> None:
        view, at = memoryview(raw), start
        while view:
            written = os.pwrite(self._files[name].fileno(), view, at)
            view, at = view[written:], at + written
        self._files[JOURNAL].write(f"{chunk} {right}\n".encode())
        with self._lock:
            self._have[chunk] = True
            self._moved = time.monotonic()
            self._lock.notify_all()

    def _rest(self, error: SourceFailed) -> None:
        """After a failure of the origin, which nobody can stand in for."""
        self._trouble = str(error)  # for the last word, should it not come back
        time.sleep(PAUSE_S)

    def _fail(self, problem: WeightError) -> None:
        with self._lock:
            self._problem = self._problem or problem
            self._lock.notify_all()


def announce(parcel: Parcel, origin: str, relay: str, token: str) -> None:
    """Tells the origin that all of a parcel is here, for others to take; where it does not hear it, nothing is lost."""
    have = np.ones(parcel.count, bool)
    with contextlib.suppress(SourceFailed):
        call(origin, parcel.work_path, token, _question(parcel, relay, have, ~have, set()))


def _question(parcel: Parcel, relay: str, have: np.ndarray, busy: np.ndarray, lost: set[str]) -> dict[str, Any]:
    """For the origin's board."""
    flags = {"have": to_text(have), "busy": to_text(busy)}
    return {"tag": parcel.tag, "relay": relay, **flags, "lost": sorted(lost)}
