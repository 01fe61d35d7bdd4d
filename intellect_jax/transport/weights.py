"""The weight store: a folder of published policy versions, each a manifest beside safetensors files.

    <folder>/v<lineage>-<number>/manifest.json
    <folder>/v<lineage>-<number>/weights-00000.safetensors

A version's folder appears whole, by rename. Whoever reads it checks every byte before using any tensor: the manifest is
sealed, and names the hash of each piece and of each file's header.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable
from itertools import accumulate
from pathlib import Path

import numpy as np

from intellect_jax.files import sealed, write_json
from intellect_jax.transport import deltas, safetensors_file
from intellect_jax.transport.deltas import Changed
from intellect_jax.transport.mirror import Mirror
from intellect_jax.transport.reading import (
    DELTA,
    FOLDER,
    MANIFEST,
    WeightError,
    hash_of,
    located,
    version_folder,
)
from intellect_jax.types import FileEntry, Manifest, Piece, TensorEntry, Version

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 4 << 30  # what a publisher holds in memory at once


class WeightStore:
    """Published versions under ``folder``; one process publishes, any number read.

    ``keep``: how many versions stay on disk, the newest first, and besides those that the oldest's deltas start from.
    Where they take more than ``most_bytes`` (0: no bound) fewer stay, but ``least`` at least.
    """

    def __init__(self, folder: Path | str, keep: int = 4, *, most_bytes: float = 0, least: int = 2):
        self.folder = Path(folder).absolute()
        self.keep, self.most_bytes, self.least = keep, most_bytes, least

    def publish(
        self,
        version: Version,
        tensors: Iterable[tuple[str, np.ndarray]] | None,
        *,
        delta: tuple[Version, Iterable[Changed]] | None = None,
        replace_damaged: bool = False,
        part: int = 0,
        parts: int = 1,
        meet: Callable[[str], None] = lambda what: None,
    ) -> Path:
        """Writes a version, in full, as a delta or both, and prunes old ones; returns the path of its manifest.

        ``tensors`` yields (Hugging Face name, array of a dtype of ``safetensors_file.DTYPES``); ``delta``: the version
        before and what changed since, of every tensor in an order that is always the same. Raises WeightError when the
        version is there already: a version is made once. ``replace_damaged`` makes it again from the same tensors.

        Of several processes that publish a version together, each gives other tensors, and ``meet`` returns when all
        have called it. The first one commits the manifest, last of all.
        """
        final = self._path(version)
        work = self.folder / f".{final.name}.tmp"
        if part == 0:
            if final.exists() and not replace_damaged:
                raise WeightError(f"version {version} is published already: {final}")
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(work, ignore_errors=True)  # of a publisher that died
            work.mkdir()
        meet("weights: folder made")
        written: dict[str, Manifest] = {}
        if tensors is not None:
            written[MANIFEST] = _write_files(work, version, tensors, part, parts)
        if delta is not None:
            written[DELTA] = deltas.write_files(work, version, *delta, part)
        for name, manifest in written.items() if part else ():
            write_json(work / _part_name(name, part), manifest.to_json())
        meet("weights: files written")
        if part == 0:
            self._commit(work, final, {name: _joined(work, name, mine, parts) for name, mine in written.items()})
        meet("weights: committed")
        return final / min(written, key=(MANIFEST, DELTA).index)

    def _commit(self, work: Path, final: Path, manifests: dict[str, Manifest]) -> None:
        for name, manifest in manifests.items():
            (work / name).write_text(sealed(manifest.to_json()))
        if final.exists():
            _set_aside(final)
        os.rename(work, final)
        self._prune()

    def versions(self) -> list[Version]:
        """Every published version, oldest first; a later lineage is newer."""
        if not self.folder.is_dir():
            return []
        found = (FOLDER.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(Version(int(m[1]), int(m[2])) for m in found if m)

    def latest(self) -> Version | None:
        """The newest published version."""
        return max(self.versions(), default=None)

    def is_whole(self, version: Version) -> bool:
        """Whether the version can be read."""
        try:
            Mirror().advance(self.folder, version)
        except WeightError:
            return False
        return True

    def manifest_path(self, version: Version) -> Path:
        """Where the manifest of a published version lies: the full one's, where there are two."""
        folder = self._path(version)
        return folder / (MANIFEST if (folder / MANIFEST).exists() else DELTA)

    def nbytes(self, version: Version) -> tuple[int, int]:
        """Bytes of a published version's tensors: in full, and as a delta; 0 for what it is not there as."""
        sizes = [(path.suffix, path.stat().st_size) for path in self._path(version).iterdir()]
        return sum(n for kind, n in sizes if kind == ".safetensors"), sum(n for kind, n in sizes if kind == ".bin")

    @staticmethod
    def read(manifest_path: Path | str) -> dict[str, np.ndarray]:
        """Every tensor of a version by its Hugging Face name, all hashes verified; raises WeightError."""
        mirror = Mirror()
        mirror.advance(*located(manifest_path))
        return mirror.tensors

    def _path(self, version: Version) -> Path:
        return version_folder(self.folder, version)

    def _prune(self) -> None:
        versions = self.versions()
        for version in versions[: self._doomed(versions)]:
            _set_aside(self._path(version))
        for doomed in self.folder.glob(".v*.old"):
            shutil.rmtree(doomed, ignore_errors=True)

    def _doomed(self, versions: list[Version]) -> int:
        """How many of the oldest go."""
        cut = max(len(versions) - self.keep, 0)
        if self.most_bytes:
            taken = list(accumulate(sum(self.nbytes(version)) for version in reversed(versions)))
            fit = sum(nbytes <= self.most_bytes for nbytes in taken)
            cut = max(cut, len(versions) - max(fit, self.least))
        while cut > 0 and not (self._path(versions[cut]) / MANIFEST).exists():
            cut -= 1  # the oldest that stays must be there in full, or start from one that is
        return cut


def _set_aside(folder: Path) -> None:
    """Renames a version that is to be deleted: half deleted it must not look like a published one."""
    doomed = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(doomed, ignore_errors=True)  # of a publisher that died
    os.rename(folder, doomed)


def _write_files(
    folder: Path, version: Version, tensors: Iterable[tuple[str, np.ndarray]], part: int, parts: int
) -> Manifest:
    """Writes every ``parts``-th file, from number ``part`` on; returns what they hold."""
    entries: dict[str, TensorEntry] = {}
    files: dict[str, FileEntry] = {}
    for i, shard in enumerate(safetensors_file.split_shards(tensors, MAX_FILE_BYTES)):
        file = f"weights-{i * parts + part:05d}.safetensors"
        layout = safetensors_file.write(folder / file, shard)
        files[file] = _file_entry(folder / file, layout)
        for name, stored in layout.items():
            _refuse_twice(name, entries)
            whole = [[0, size] for size in stored.shape]
            piece = Piece(whole, file, stored.start, stored.stop, hash_of(shard[name]))
            entries[name] = TensorEntry(stored.dtype, list(stored.shape), [piece])
    return Manifest(version, "full", files, entries)


def _part_name(manifest: str, part: int) -> str:
    """What one of several publishers wrote."""
    return f"part-{part}.{manifest}"


def _joined(work: Path, what: str, manifest: Manifest, parts: int) -> Manifest:
    """The manifest of all parts, of which every process but the first one left its own in the folder."""
    for part in range(1, parts):
        path = work / _part_name(what, part)
        other = Manifest.from_json(json.loads(path.read_text()))
        path.unlink()
        manifest.files.update(other.files)
        for name, entry in other.tensors.items():
            if manifest.kind == "delta":  # every part has changes of its own in the same tensors
                entry.pieces[:0] = manifest.tensors[name].pieces
            else:
                _refuse_twice(name, manifest.tensors)
            manifest.tensors[name] = entry
    return manifest


def _refuse_twice(name: str, entries: dict[str, TensorEntry]) -> None:
    if name in entries:
        raise WeightError(f"tensor {name} is published twice")


def _file_entry(path: Path, layout: dict[str, safetensors_file.Stored]) -> FileEntry:
    size = path.stat().st_size
    header = min((stored.start for stored in layout.values()), default=size)
    return FileEntry(size, header, hash_of(np.fromfile(path, dtype=np.uint8, count=header)))
