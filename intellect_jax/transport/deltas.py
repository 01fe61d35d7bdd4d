"""Delta versions: what changed since the version before, beside or instead of a full one.

    <folder>/v<lineage>-<number>/delta.json
    <folder>/v<lineage>-<number>/delta-00000.bin

A blob holds the changes of several tensors as of one flat array (see ``changes``): every tensor of it names the same
bytes in its piece, and its elements come after those of the tensors before it in the manifest. Several publishers of
one version write a blob each, of changes in different places of the same tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np

from intellect_jax.transport import changes, safetensors_file
from intellect_jax.transport.changes import Changes, Moves
from intellect_jax.transport.reading import WeightError, hash_of, read_file, read_manifest
from intellect_jax.types import FileEntry, Manifest, Piece, TensorEntry, Version

MOST_ELEMENTS = 1 << 30  # of one blob: what a reader decodes at once


class Changed(NamedTuple):
    """What changed in one tensor, by its Hugging Face name."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    changes: Changes


def write_files(folder: Path, version: Version, base: Version, tensors: Iterable[Changed], part: int = 0) -> Manifest:
    """Writes one publisher's file; returns what it holds."""
    name, at, entries = f"delta-{part:05d}.bin", 0, {}
    with (folder / name).open("wb") as file:
        for group in _groups(tensors):
            blob = changes.encode(_joined([tensor.changes for tensor in group], [prod(t.shape) for t in group]))
            file.write(blob)
            for tensor in group:
                whole = [[0, size] for size in tensor.shape]
                piece = Piece(whole, name, at, at + len(blob), hash_of(blob))
                dtype = safetensors_file.dtype_name(tensor.dtype)
                entries[tensor.name] = TensorEntry(dtype, list(tensor.shape), [piece])
            at += len(blob)
    return Manifest(version, "delta", {name: FileEntry(at, 0, hash_of(b""))}, entries, base)


def _groups(tensors: Iterable[Changed]) -> Iterator[list[Changed]]:
    """Neighbours of one dtype, until they have too many elements together."""
    group: list[Changed] = []
    elements = 0
    for tensor in tensors:
        size = prod(tensor.shape)
        if group and (group[0].dtype != tensor.dtype or elements + size > MOST_ELEMENTS):
            yield group
            group, elements = [], 0
        group.append(tensor)
        elements += size
    if group:
        yield group


def _joined(parts: list[Changes], sizes: list[int]) -> Changes:
    """As of one array, the tensors one after the other."""
    starts = np.cumsum([0, *sizes[:-1]])
    where = np.concatenate([part.where + start for part, start in zip(parts, starts, strict=True)])
    return Changes(where, np.concatenate([p.before for p in parts]), np.concatenate([p.after for p in parts]))


class Delta(NamedTuple):
    """A delta read and verified, but not applied."""

    manifest: Manifest
    moves: list[tuple[str, Moves]]  # of each tensor

    def apply(self, tensors: dict[str, np.ndarray]) -> None:
        """Makes the tensors of the base those of the version, in place."""
        for name, moves in self.moves:
            moves.apply(tensors[name])


def read(path: Path) -> Delta:
    """A whole delta, every byte verified and decoded; raises WeightError."""
    manifest = read_manifest(path)
    if manifest.kind != "delta" or manifest.base is None:
        raise WeightError(f"{path}: not a delta")
    files = {name: read_file(path.parent, name, entry) for name, entry in manifest.files.items()}
    moves: list[tuple[str, Moves]] = []
    for piece, names in _blobs(manifest).items():
        entries = [manifest.tensors[name] for name in names]
        ends = np.cumsum([0, *(prod(entry.shape) for entry in entries)])
        raw = files[piece.file][piece.start : piece.stop]
        if piece.hash != hash_of(raw):
            raise WeightError(f"{path}: bytes {piece.start}-{piece.stop} of {piece.file} do not match their hash")
        try:
            decoded = changes.decode(raw.data, safetensors_file.DTYPES[entries[0].dtype], int(ends[-1]))
        except ValueError as error:
            raise WeightError(f"{path}: {piece.file}: {error}") from error
        moves += zip(names, decoded.split(ends), strict=True)
    return Delta(manifest, moves)


class _Blob(NamedTuple):
    file: str
    start: int
    stop: int
    hash: str


def _blobs(manifest: Manifest) -> dict[_Blob, list[str]]:
    """The names of each blob's tensors, in order."""
    found: dict[_Blob, list[str]] = {}
    for name, entry in manifest.tensors.items():
        for piece in entry.pieces:
            found.setdefault(_Blob(piece.file, piece.start, piece.stop, piece.hash), []).append(name)
    return found
