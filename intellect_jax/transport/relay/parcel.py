"""What travels: a manifest and the files that it names, cut into chunks."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from intellect_jax.transport.reading import DELTA, MANIFEST, WeightError, hash_of, read_manifest, version_folder
from intellect_jax.types import Version

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # of a file: never a path, never hidden
SMALLEST, LARGEST = 256 << 10, 16 << 20  # bytes of a chunk
CHUNKS = 1024  # that a parcel is cut into, about, as far as those bounds let it


@dataclass(frozen=True)
class Parcel:
    """One manifest of a version, full or delta, and its files. Chunks are numbered through all of them in order."""

    version: Version
    manifest: str  # name of the manifest's file
    tag: str  # xxh3_64 of the manifest: a version that is published again has another one
    base: Version | None
    chunk: int  # bytes of each chunk but the last one of a file
    files: dict[str, int] = field(repr=False)  # name → bytes; the manifest among them

    @cached_property
    def _ends(self) -> list[int]:
        """Of each file, the number of the first chunk after it."""
        return list(accumulate(-(-size // self.chunk) for size in self.files.values()))

    @property
    def count(self) -> int:
        """Chunks in all."""
        return self._ends[-1]

    @property
    def path(self) -> str:
        """Where its files are served."""
        return version_path(self.version)

    @property
    def work_path(self) -> str:
        """Where readers of it ask for work."""
        return f"{self.path}/{self.manifest}/work"

    @property
    def nbytes(self) -> int:
        return sum(self.files.values())

    def span(self, chunk: int) -> tuple[str, int, int]:
        """File and byte range [start, stop) of a chunk."""
        at = bisect_right(self._ends, chunk)
        name = list(self.files)[at]
        start = (chunk - (self._ends[at - 1] if at else 0)) * self.chunk
        return name, start, min(start + self.chunk, self.files[name])

    def chunks_of(self, name: str, start: int, stop: int) -> range:
        """The chunks that a byte range of a file touches; an empty range where there is no such file."""
        if name not in self.files:
            return range(0)
        at = list(self.files).index(name)
        first = self._ends[at - 1] if at else 0
        return range(first + start // self.chunk, first + -(-stop // self.chunk))

    def to_json(self) -> dict[str, Any]:
        base = self.base and str(self.base)
        return {"tag": self.tag, "base": base, "chunk": self.chunk, "files": self.files}

    @classmethod
    def from_json(cls, version: Version, manifest: str, data: Any) -> Parcel:
        """Raises WeightError for what no origin says: above all names that lead out of a folder."""
        try:
            files = {str(name): int(size) for name, size in data["files"].items()}
            base = Version.parse(data["base"]) if data["base"] else None
            parcel = cls(version, manifest, str(data["tag"]), base, int(data["chunk"]), files)
            sound = manifest in files and parcel.chunk > 0 and min(files.values()) >= 0
        except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
            raise WeightError(f"version {version}: what its source says of {manifest} is wrong: {error!r}") from error
        if not sound or not all(map(NAME.fullmatch, files)):
            raise WeightError(f"version {version}: what its source says of {manifest} is wrong: {files}")
        return parcel


def version_path(version: Version) -> str:
    """Under which a version is served."""
    return f"/v{version.lineage}-{version.number}"


def describe(store: Path, version: Version, manifest: str) -> Parcel | None:
    """A parcel of a version in a store; None when it is not there. Raises WeightError when its manifest is damaged."""
    path = version_folder(store, version) / manifest
    if not path.is_file():
        return None
    content = read_manifest(path)
    raw = path.read_bytes()
    files = {manifest: len(raw), **{name: entry.size for name, entry in content.files.items()}}
    return Parcel(version, manifest, hash_of(raw), content.base, _chunk_bytes(sum(files.values())), files)


def describe_all(store: Path, version: Version) -> list[Parcel]:
    """The full one first; raises WeightError when none of those that are there can be read."""
    found: list[Parcel] = []
    problem: WeightError | None = None
    for manifest in (MANIFEST, DELTA):
        try:
            parcel = describe(store, version, manifest)
        except WeightError as error:
            problem = error
        else:
            found += [parcel] if parcel else []
    if problem and not found:
        raise problem
    return found


def _chunk_bytes(nbytes: int) -> int:
    """A power of two."""
    size = SMALLEST
    while size < LARGEST and size * CHUNKS < nbytes:
        size *= 2
    return size
