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
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import xxhash

from intellect_jax.files import sealed, unseal, write_json
from intellect_jax.transport import safetensors_file
from intellect_jax.types import FileEntry, Manifest, Piece, TensorEntry, Version

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
PART = "part-{}.json"  # what one of several publishers wrote
MAX_FILE_BYTES = 4 << 30  # what a publisher holds in memory at once
_FOLDER = re.compile(r"v(\d+)-(\d+)")


class WeightError(Exception):
    """A published version that must not be used: damaged, incomplete, or gone."""


class WeightStore:
    """Published versions under ``folder``; one process publishes, any number read.

    ``keep``: how many versions stay on disk, the newest first.
    """

    def __init__(self, folder: Path | str, keep: int = 4):
        self.folder = Path(folder).absolute()
        self.keep = keep

    def publish(
        self,
        version: Version,
        tensors: Iterable[tuple[str, np.ndarray]],
        *,
        replace_damaged: bool = False,
        part: int = 0,
        parts: int = 1,
        meet: Callable[[str], None] = lambda what: None,
    ) -> Path:
        """Writes a full version and prunes old ones; returns the manifest's path.

        ``tensors`` yields (Hugging Face name, array of a dtype of ``safetensors_file.DTYPES``). Raises WeightError
        when the version is there already: a version is made once. ``replace_damaged`` makes it again from the same
        tensors.

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
        manifest = _write_files(work, version, tensors, part, parts)
        if part:
            write_json(work / PART.format(part), manifest.to_json())
        meet("weights: files written")
        if part == 0:
            self._commit(work, final, _joined(work, manifest, parts))
        meet("weights: committed")
        return final / MANIFEST

    def _commit(self, work: Path, final: Path, manifest: Manifest) -> None:
        (work / MANIFEST).write_text(sealed(manifest.to_json()))
        if final.exists():
            _set_aside(final)
        os.rename(work, final)
        self._prune()

    def versions(self) -> list[Version]:
        """Every published version, oldest first; a later lineage is newer."""
        if not self.folder.is_dir():
            return []
        found = (_FOLDER.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(Version(int(m[1]), int(m[2])) for m in found if m)

    def latest(self) -> Version | None:
        """The newest published version."""
        return max(self.versions(), default=None)

    def is_whole(self, version: Version) -> bool:
        """Whether the version can be read."""
        try:
            self.read(self.manifest_path(version))
        except WeightError:
            return False
        return True

    def manifest_path(self, version: Version) -> Path:
        """Where the manifest of a published version lies."""
        return self._path(version) / MANIFEST

    @staticmethod
    def read(manifest_path: Path | str) -> dict[str, np.ndarray]:
        """Every tensor of a version by its Hugging Face name, all hashes verified; raises WeightError."""
        return read_tensors(manifest_path, read_manifest(manifest_path))

    def _path(self, version: Version) -> Path:
        return self.folder / f"v{version.lineage}-{version.number}"

    def _prune(self) -> None:
        for version in self.versions()[: -self.keep]:
            _set_aside(self._path(version))
        for doomed in self.folder.glob(".v*.old"):
            shutil.rmtree(doomed, ignore_errors=True)


def _set_aside(folder: Path) -> None:
    """Renames a version that is to be deleted: half deleted it must not look like a published one."""
    doomed = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(doomed, ignore_errors=True)  # of a publisher that died
    os.rename(folder, doomed)


def read_manifest(path: Path | str) -> Manifest:
    """The manifest at ``path``; raises WeightError when it is missing or damaged."""
    try:
        return Manifest.from_json(unseal(Path(path).read_bytes()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightError(f"cannot read the weight manifest {path}: {error!r}") from error


def read_tensors(manifest_path: Path | str, manifest: Manifest) -> dict[str, np.ndarray]:
    """The tensors that ``manifest`` names, from the files beside it, hashes verified; raises WeightError."""
    if manifest.kind != "full":
        raise WeightError(f"{manifest_path}: version {manifest.version} is a {manifest.kind}, not a full version")
    folder = Path(manifest_path).parent
    # Whole files in memory rather than mapped ones: what was verified is what is used, whatever happens to the file.
    files = {name: _read_file(folder, name, entry) for name, entry in manifest.files.items()}
    return {name: _assemble(name, entry, files) for name, entry in manifest.tensors.items()}


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
            piece = Piece(whole, file, stored.start, stored.stop, _hash(shard[name]))
            entries[name] = TensorEntry(stored.dtype, list(stored.shape), [piece])
    return Manifest(version, "full", files, entries)


def _joined(work: Path, manifest: Manifest, parts: int) -> Manifest:
    """The manifest of all parts, of which every process but the first one left its own in the folder."""
    for part in range(1, parts):
        path = work / PART.format(part)
        other = Manifest.from_json(json.loads(path.read_text()))
        path.unlink()
        manifest.files.update(other.files)
        for name, entry in other.tensors.items():
            _refuse_twice(name, manifest.tensors)
            manifest.tensors[name] = entry
    return manifest


def _refuse_twice(name: str, entries: dict[str, TensorEntry]) -> None:
    if name in entries:
        raise WeightError(f"tensor {name} is published twice")


def _file_entry(path: Path, layout: dict[str, safetensors_file.Stored]) -> FileEntry:
    size = path.stat().st_size
    header = min((stored.start for stored in layout.values()), default=size)
    return FileEntry(size, header, _hash(np.fromfile(path, dtype=np.uint8, count=header)))


def _read_file(folder: Path, name: str, entry: FileEntry) -> np.ndarray:
    """A whole file as uint8, its size and header verified; the name must lie in ``folder`` itself."""
    path = folder / name
    if Path(name).name != name:
        raise WeightError(f"file {name!r} lies outside of {folder}")
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise WeightError(f"cannot read {path}: {error}") from error
    if content.nbytes != entry.size:
        raise WeightError(f"{path} has {content.nbytes} bytes, {entry.size} were written")
    if _hash(content[: entry.header]) != entry.hash:
        raise WeightError(f"{path}: its header does not match its hash")
    return content


def _assemble(name: str, entry: TensorEntry, files: dict[str, np.ndarray]) -> np.ndarray:
    """One tensor from its verified pieces; without a copy when it is whole in one."""
    for piece in entry.pieces:
        if piece.file not in files:
            raise WeightError(f"tensor {name}: {piece.file} is not among the files of its version")
    dtype = safetensors_file.DTYPES.get(entry.dtype)
    if dtype is None:
        raise WeightError(f"tensor {name}: unknown dtype {entry.dtype}")
    parts = [(piece.slice, _verified(name, piece, dtype, files[piece.file])) for piece in entry.pieces]
    if sum(part.size for _, part in parts) != int(np.prod(entry.shape)):
        raise WeightError(f"tensor {name}: its pieces do not cover its shape {entry.shape}")
    if len(parts) == 1:
        return parts[0][1].reshape(entry.shape)
    whole = np.empty(entry.shape, dtype)
    for bounds, part in parts:
        whole[tuple(slice(*b) for b in bounds)] = part
    return whole


def _verified(name: str, piece: Piece, dtype: np.dtype, content: np.ndarray) -> np.ndarray:
    """The elements of a piece in its slice's shape."""
    shape = [stop - start for start, stop in piece.slice]
    raw = content[piece.start : piece.stop]
    if raw.nbytes != piece.stop - piece.start or raw.nbytes != int(np.prod(shape)) * dtype.itemsize:
        raise WeightError(f"tensor {name}: {piece.file} is cut short at {content.nbytes} bytes, or its range is wrong")
    if _hash(raw) != piece.hash:
        raise WeightError(f"tensor {name}: bytes {piece.start}-{piece.stop} of {piece.file} do not match their hash")
    return raw.view(dtype).reshape(shape)


def _hash(array: np.ndarray) -> str:
    return xxhash.xxh3_64_hexdigest(safetensors_file.raw_bytes(array))
