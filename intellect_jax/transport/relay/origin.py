"""The trainer's side: serves a weight store, and tells every reader from whom to take what."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from intellect_jax.transport.reading import DELTA, FOLDER, MANIFEST, WeightError, hash_of, version_folder
from intellect_jax.transport.relay.board import GRANTED, Ask, Board, bits
from intellect_jax.transport.relay.client import longest
from intellect_jax.transport.relay.parcel import Parcel, describe
from intellect_jax.transport.relay.server import NotHere, open_plain
from intellect_jax.transport.weights import WeightStore
from intellect_jax.types import Version

BOARDS = 256  # parcels whose readers are remembered
JOBS = 128  # answers, about, that give away a whole parcel

_VERSION = re.compile(rf"/({FOLDER.pattern})")
_WORK = re.compile(rf"/({FOLDER.pattern})/({re.escape(MANIFEST)}|{re.escape(DELTA)})/work")


class Origin:
    """A shelf of published versions, and a board for each parcel that somebody asked for.

    - ``GET /versions`` → {latest, readers}: how many relays have the latest whole.
    - ``GET /v0-12`` → {manifest name: parcel}. ``GET /v0-12/<file>``: its bytes, by range.
    - ``POST /v0-12/<manifest name>/work`` {tag, relay, have, busy, lost} → {jobs: [[chunk, source, hash]]}; "" as a
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
            return {"latest": latest and str(latest), "readers": self._readers(latest) if latest else 0}
        if (found := _VERSION.fullmatch(path)) and question is None:
            return self._described(Version(int(found[2]), int(found[3])))
        if (found := _WORK.fullmatch(path)) and question is not None:
            return self._sheet(Version(int(found[2]), int(found[3])), found[4]).work(question)
        raise NotHere(f"nothing is at {path}")

    def _readers(self, version: Version) -> int:
        with self._lock:
            return sum(sheet.board.whole() for (of, _), sheet in self._sheets.items() if of == version)

    def _described(self, version: Version) -> dict[str, Any]:
        """The parcels of a version by manifest; where both are there and one is damaged, the other."""
        found, problems = {}, []
        for manifest in (MANIFEST, DELTA):
            try:
                found[manifest] = self._sheet(version, manifest).parcel.to_json()
            except (NotHere, WeightError) as error:
                problems.append(error)
        if not found:
            raise next((error for error in problems if isinstance(error, WeightError)), problems[0])
        return found

    def _sheet(self, version: Version, manifest: str) -> _Sheet:
        """The parcel as it is on disk now: one that was published again starts anew."""
        folder = version_folder(self.store.folder, version)
        with self._lock:
            sheet = self._sheets.get((version, manifest))
            mark = _mark(folder / manifest)
            if sheet is None or sheet.mark != mark:
                parcel = describe(self.store.folder, version, manifest)
                if parcel is None:
                    raise NotHere(f"there is no {manifest} of version {version}")
                sheet = self._sheets[version, manifest] = _Sheet(parcel, folder, mark)
                for old in sorted(self._sheets)[:-BOARDS]:
                    del self._sheets[old]
            return sheet


def _mark(path: Path) -> tuple[int, ...]:
    """Differs for a file that was put in another's place; raises NotHere."""
    try:
        found = path.stat()
    except OSError as error:
        raise NotHere(f"there is no {path.name} of version {path.parent.name}") from error
    return found.st_ino, found.st_mtime_ns, found.st_size


class _Sheet:
    """A parcel's board, and the hashes of its chunks, each made when it is first given away."""

    def __init__(self, parcel: Parcel, folder: Path, mark: tuple[int, ...]):
        self.parcel = parcel
        self.mark = mark  # of the file that it was made from
        self.board = Board(parcel.count, longest(parcel.chunk))
        self._folder = folder
        self._hashes: dict[int, str] = {}

    def work(self, question: dict[str, Any]) -> Any:
        if question["tag"] != self.parcel.tag:
            raise NotHere(f"version {self.parcel.version} was published again")
        have, busy = (bits(question[name], self.parcel.count) for name in ("have", "busy"))
        ask = Ask(str(question["relay"]), have, busy, frozenset(map(str, question["lost"])))
        jobs = self.board.work(ask, max(GRANTED, self.parcel.count // JOBS))
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
