"""The trainer's side: serves a weight store, and tells every reader from whom to take what."""

from __future__ import annotations

import logging
import re
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from intellect_jax.transport.reading import DELTA, FOLDER, MANIFEST, hash_of, version_folder
from intellect_jax.transport.relay.board import Ask, Board, bits
from intellect_jax.transport.relay.client import longest
from intellect_jax.transport.relay.parcel import Parcel, describe, describe_all
from intellect_jax.transport.relay.server import NotHere, Server, open_plain
from intellect_jax.transport.weights import WeightStore
from intellect_jax.types import Version

log = logging.getLogger(__name__)

BOARDS = 32  # parcels whose readers are remembered
JOBS = 2  # chunks that one answer gives at most
POLL_S = 0.2

_VERSION = re.compile(rf"/({FOLDER.pattern})")
_WORK = re.compile(rf"/({FOLDER.pattern})/({re.escape(MANIFEST)}|{re.escape(DELTA)})/work")


class Origin:
    """A shelf of published versions, and a board for each parcel that somebody asked for.

    ``GET /versions`` → {latest}. ``GET /v0-12`` → {manifest name: parcel}. ``GET /v0-12/<file>``: its bytes, by range.
    ``POST /v0-12/<manifest name>/work`` {tag, relay, have, busy, lost} → {jobs: [[chunk, source, hash]]}; "" as a
    source: the origin itself.
    """

    def __init__(self, store: WeightStore):
        self.store = store
        self._sheets: dict[tuple[Version, str], _Sheet] = {}
        self._lock = threading.Lock()

    def open(self, version: Version, name: str, start: int, stop: int | None) -> BinaryIO:
        """A file of a published version; raises NotHere."""
        return open_plain(version_folder(self.store.folder, version) / name)

    def answer(self, path: str, question: dict[str, Any] | None) -> Any:
        """See the class; raises NotHere, WeightError for a damaged manifest, ValueError and KeyError."""
        if path == "/versions" and question is None:
            latest = self.store.latest()
            return {"latest": latest and str(latest)}
        if (found := _VERSION.fullmatch(path)) and question is None:
            parcels = describe_all(self.store.folder, Version(int(found[2]), int(found[3])))
            if not parcels:
                raise NotHere(f"there is no version {found[1]}")
            return {parcel.manifest: parcel.to_json() for parcel in parcels}
        if (found := _WORK.fullmatch(path)) and question is not None:
            return self._sheet(Version(int(found[2]), int(found[3])), found[4]).work(question)
        raise NotHere(f"nothing is at {path}")

    def readers(self, version: Version) -> int:
        """Relays that have this version whole, one way or the other."""
        with self._lock:
            return sum(sheet.board.whole() for (of, _), sheet in self._sheets.items() if of == version)

    def _sheet(self, version: Version, manifest: str) -> _Sheet:
        """The parcel as it is on disk now: one that was published again starts anew."""
        with self._lock:
            parcel = describe(self.store.folder, version, manifest)
            if parcel is None:
                raise NotHere(f"there is no {manifest} of version {version}")
            sheet = self._sheets.get((version, manifest))
            if sheet is None or sheet.parcel != parcel:
                sheet = self._sheets[version, manifest] = _Sheet(parcel, version_folder(self.store.folder, version))
                for old in sorted(self._sheets)[:-BOARDS]:
                    del self._sheets[old]
            return sheet


class _Sheet:
    """A parcel's board, and the hashes of its chunks, each made when it is first given away."""

    def __init__(self, parcel: Parcel, folder: Path):
        self.parcel = parcel
        self.board = Board(parcel.count, longest(parcel.chunk))
        self._folder = folder
        self._hashes: dict[int, str] = {}

    def work(self, question: dict[str, Any]) -> Any:
        if question["tag"] != self.parcel.tag:
            raise NotHere(f"version {self.parcel.version} was published again")
        have, busy = (bits(question[name], self.parcel.count) for name in ("have", "busy"))
        ask = Ask(str(question["relay"]), have, busy, frozenset(map(str, question["lost"])))
        jobs = self.board.work(ask, JOBS)
        return {"jobs": [[job.chunk, job.source, self._hash(job.chunk)] for job in jobs]}

    def _hash(self, chunk: int) -> str:
        known = self._hashes.get(chunk)
        if known is None:
            name, start, stop = self.parcel.span(chunk)
            try:
                content = np.fromfile(self._folder / name, np.uint8, stop - start, offset=start)
            except OSError as error:
                raise NotHere(f"{name} of version {self.parcel.version} is gone: {error}") from error
            known = self._hashes[chunk] = hash_of(content)
        return known


class Serving:
    """An origin behind its server, in the trainer's process."""

    def __init__(self, store: WeightStore, host: str, port: int, token: str | None = None):
        self.origin = Origin(store)
        self.server = Server(self.origin, host, port, token)
        log.info("serving weights on port %d", self.server.port)

    def linger(self, version: Version, readers: int, timeout: float) -> None:
        """Waits until so many relays have the last version, at most ``timeout`` seconds: who is to evaluate it needs
        it, and after this nobody sends it."""
        deadline = time.monotonic() + timeout
        while self.origin.readers(version) < readers and time.monotonic() < deadline:
            time.sleep(POLL_S)

    def close(self) -> None:
        self.server.close()
        log.info("%.1f MB of weights were sent", sum(self.server.sent.values()) / 1e6)
