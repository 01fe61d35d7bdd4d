"""Reading published versions: whoever does checks every byte before using any tensor.

The manifest is sealed, and names the hash of each piece and of each file's header.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import xxhash

from intellect_jax.files import unseal
from intellect_jax.transport import safetensors_file
from intellect_jax.types import FileEntry, Manifest, Piece, TensorEntry, Version

MANIFEST = "manifest.json"  # of a full version
DELTA = "delta.json"
FOLDER = re.compile(r"v(\d+)-(\d+)")


class WeightError(Exception):
    """A published version that must not be used: damaged, incomplete, or gone."""


def version_folder(store: Path, version: Version) -> Path:
    """Where a store keeps a version."""
    return store / f"v{version.lineage}-{version.number}"


def located(manifest_path: Path | str) -> tuple[Path, Version]:
    """The store and the version of a manifest; raises WeightError when it is not there, or cannot be one's."""
    folder = Path(manifest_path).parent
    found = FOLDER.fullmatch(folder.name)
    if not Path(manifest_path).is_file():
        raise WeightError(f"there is no weight manifest {manifest_path}")
    if found is None:
        raise WeightError(f"{manifest_path} does not lie in the folder of a version")
    return folder.parent, Version(int(found[1]), int(found[2]))


def read_manifest(path: Path | str) -> Manifest:
    """The manifest at ``path``; raises WeightError when it is missing or damaged."""
    try:
        return _parsed(Path(path).read_bytes())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightError(f"cannot read the weight manifest {path}: {type(error).__name__}: {error}") from error


@lru_cache(maxsize=4)  # on its way to a version a reader looks at the same manifests again and again
def _parsed(raw: bytes) -> Manifest:
    """Whose value nobody may change; raises ValueError, KeyError or TypeError."""
    return Manifest.from_json(unseal(raw))


def read_tensors(manifest_path: Path | str, manifest: Manifest) -> dict[str, np.ndarray]:
    """The tensors that ``manifest`` names, from the files beside it, hashes verified; raises WeightError."""
    if manifest.kind != "full":
        raise WeightError(f"{manifest_path}: version {manifest.version} is a {manifest.kind}, not a full version")
    folder = Path(manifest_path).parent
    # Whole files in memory rather than mapped ones: what was verified is what is used, whatever happens to the file.
    files = {name: read_file(folder, name, entry) for name, entry in manifest.files.items()}
    return {name: _assemble(name, entry, files) for name, entry in manifest.tensors.items()}


def read_file(folder: Path, name: str, entry: FileEntry) -> np.ndarray:
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
    if hash_of(content[: entry.header]) != entry.hash:
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
    if hash_of(raw) != piece.hash:
        raise WeightError(f"tensor {name}: bytes {piece.start}-{piece.stop} of {piece.file} do not match their hash")
    return raw.view(dtype).reshape(shape)


def hash_of(data: np.ndarray | bytes) -> str:
    """xxh3_64 of the bytes, 16 hex digits."""
    raw = safetensors_file.raw_bytes(data) if isinstance(data, np.ndarray) else data
    return xxhash.xxh3_64_hexdigest(raw)
