"""The safetensors format in numpy, bfloat16 included: 8 bytes header length, a JSON header, the tensors' bytes.

The safetensors package neither tells the byte range at which it wrote a tensor, which a weight manifest names, nor maps
a bfloat16 file lazily for numpy. Files written here are read by it, and the other way round.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Stored(NamedTuple):
    """Where one tensor lies: dtype by its safetensors name, byte range [start, stop) within the whole file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def dtype_name(dtype: np.dtype) -> str:
    """Safetensors' name of a numpy dtype; raises ValueError for one that the format's users cannot hold."""
    if dtype not in _NAMES:
        raise ValueError(f"dtype {dtype} cannot be stored; known: {', '.join(DTYPES)}")
    return _NAMES[dtype]


def raw_bytes(array: np.ndarray) -> memoryview:
    """The bytes of a C-contiguous array, without a copy."""
    return array.reshape(-1).view(np.uint8).data


def split_shards(tensors: Iterable[tuple[str, np.ndarray]], max_bytes: int) -> Iterator[dict[str, np.ndarray]]:
    """Groups tensors, made C-contiguous, in the order they come, into dicts of at most ``max_bytes``
    (a larger tensor stands alone)."""
    shard: dict[str, np.ndarray] = {}
    size = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > max_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = np.ascontiguousarray(tensor)
        size += tensor.nbytes
    if shard:
        yield shard


def write(path: Path, tensors: Mapping[str, np.ndarray]) -> dict[str, Stored]:
    """Writes C-contiguous ``tensors`` as one safetensors file and returns where each of them lies."""
    header, placed = layout({name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()})
    with open(path, "wb", buffering=1 << 20) as file:
        file.write(header)
        for name in placed:
            file.write(raw_bytes(tensors[name]))
    return placed


def layout(specs: Mapping[str, tuple[np.dtype, tuple[int, ...]]]) -> tuple[bytes, dict[str, Stored]]:
    """The first bytes of a file of tensors of these dtypes and shapes, and where each of them then lies, in order.

    Wider dtypes come first, so that every tensor is aligned within the file.
    """
    at, header = 0, {}
    for name in sorted(specs, key=lambda name: -specs[name][0].itemsize):
        dtype, shape = specs[name]
        size = prod(shape) * dtype.itemsize
        header[name] = {"dtype": dtype_name(dtype), "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, _placed(header, 8 + len(text))


def read_header(path: Path) -> dict[str, Stored]:
    """Where each tensor of a safetensors file lies; raises ValueError when the file is damaged or cut short."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = struct.unpack("<Q", file.read(8))[0] if size >= 8 else 0
        if not 0 < length <= size - 8:
            raise ValueError(f"{path}: not a safetensors file, or cut short ({size} bytes)")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            stored = _placed(header, 8 + length)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: damaged safetensors header: {error!r}") from error
    for name, (dtype, shape, start, stop) in stored.items():
        if dtype not in DTYPES:
            raise ValueError(f"{path}: {name} has dtype {dtype}; supported: {', '.join(DTYPES)}")
        if stop > size or stop - start != DTYPES[dtype].itemsize * int(np.prod(shape)):
            raise ValueError(f"{path}: {name} {dtype}{list(shape)} does not fit bytes {start}-{stop} of {size}")
    return stored


def _placed(header: dict[str, dict], data_start: int) -> dict[str, Stored]:
    return {
        name: Stored(
            entry["dtype"],
            tuple(entry["shape"]),
            data_start + entry["data_offsets"][0],
            data_start + entry["data_offsets"][1],
        )
        for name, entry in header.items()
    }
