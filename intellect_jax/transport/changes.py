"""What changed between two versions of an array, in few bytes: where, as gaps; and by how much, in steps of its bits.

At the learning rates of RL a bfloat16 weight moves by a step or two of its last bit, or not at all: a few percent of
them do. Gaps between changed places fit one byte, so do steps; Huffman's code brings both near their entropy. Whoever
has the old array gets the new one back bit for bit: numbers are compared and moved as bit patterns, NaN and -0 too.

Four streams, each squeezed: gaps uint8 (255: the next of ``wide``), ``wide`` uint64, steps + 127 uint8 (255: the next
of ``far``), ``far`` new bits. Nothing here knows files, names or devices.
"""

from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple

import numpy as np

_MARK = 255  # of what does not fit a byte
_ZERO = 127  # step 0
_BITS: dict[int, np.dtype] = {2: np.dtype("<u2"), 4: np.dtype("<u4")}
_BLOCK = 1 << 18  # elements compared at once, so that what the comparison makes stays in the processor's cache
_HEAD = 5 * 8  # bytes: five numbers, uint64


class Changes(NamedTuple):
    """``where``: increasing flat indices, int64 [n]; ``before``, ``after``: the bits there, unsigned [n]."""

    where: np.ndarray
    before: np.ndarray
    after: np.ndarray


def as_bits(array: np.ndarray) -> np.ndarray:
    """The flat bit patterns of a C-contiguous array of 2- or 4-byte elements, without a copy."""
    return array.reshape(-1).view(_BITS[array.dtype.itemsize])


class TooMany(Exception):
    """More has changed than a delta is good for."""


def find(old: np.ndarray, new: np.ndarray, most: int | None = None) -> Changes:
    """Between two arrays of one dtype and shape; raises TooMany as soon as there are more than ``most``."""
    before, after = as_bits(old), as_bits(new)
    parts, count = [np.empty(0, np.int64)], 0
    for at in range(0, before.size, _BLOCK):
        parts.append(np.flatnonzero(before[at : at + _BLOCK] != after[at : at + _BLOCK]) + at)
        count += parts[-1].size
        if most is not None and count > most:
            raise TooMany(f"over {most} of {before.size} elements")
    where = np.concatenate(parts)
    return Changes(where, before[where], after[where])


def encode(changes: Changes) -> bytes:
    """For :func:`decode`; no larger than about three bytes a change."""
    gaps = np.diff(changes.where, prepend=-1) - 1
    wide = gaps >= _MARK
    steps = changes.after - changes.before + changes.after.dtype.type(_ZERO)  # modulo 2^16 or 2^32
    far = steps >= _MARK
    streams = (
        np.where(wide, _MARK, gaps).astype(np.uint8),
        gaps[wide].astype("<u8"),
        np.where(far, _MARK, steps).astype(np.uint8),
        changes.after[far],
    )
    with ThreadPoolExecutor(len(streams)) as pool:
        parts = list(pool.map(_squeeze, streams))
    head = np.array([changes.where.size, *map(len, parts)], "<u8").tobytes()
    return head + b"".join(parts)


class Moves(NamedTuple):
    """Decoded changes: what there is to do at each place, whatever stands there now."""

    where: np.ndarray  # int64 [n], increasing
    steps: np.ndarray  # uint8 [n]
    far: np.ndarray  # the new bits where a step says so, in order

    def split(self, ends: np.ndarray) -> list[Moves]:
        """Those of the flat indices between each two neighbours of ``ends``, counted from the first of the two."""
        cuts = np.searchsorted(self.where, ends)
        marks = np.searchsorted(np.flatnonzero(self.steps == _MARK), cuts)
        return [
            Moves(self.where[a:b] - start, self.steps[a:b], self.far[m:n])
            for start, (a, b), (m, n) in zip(ends, pairwise(cuts), pairwise(marks), strict=False)
        ]

    def apply(self, array: np.ndarray) -> None:
        """Makes ``array``, the old one, the new one."""
        bits = as_bits(array)
        after = bits[self.where] + self.steps - bits.dtype.type(_ZERO)
        after[self.steps == _MARK] = self.far
        bits[self.where] = after


def decode(data: bytes | memoryview, dtype: np.dtype, size: int) -> Moves:
    """Of an array of ``size`` elements; raises ValueError for what :func:`encode` cannot have written."""
    try:
        count, *sizes = np.frombuffer(data[:_HEAD], "<u8").tolist()
        ends = np.cumsum([_HEAD, *sizes])
        if len(sizes) != 4 or ends[-1] != len(data):
            raise ValueError("its length is wrong")
        parts = [zlib.decompress(data[a:b]) for a, b in pairwise(ends)]
    except (ValueError, zlib.error, OverflowError) as error:
        raise ValueError(f"coded changes are damaged: {error}") from error
    gaps, wide = np.frombuffer(parts[0], np.uint8).astype(np.int64), np.frombuffer(parts[1], "<u8")
    steps, far = np.frombuffer(parts[2], np.uint8), np.frombuffer(parts[3], _BITS[dtype.itemsize])
    marked = gaps == _MARK
    if (gaps.size, steps.size, marked.sum(), np.sum(steps == _MARK)) != (count, count, wide.size, far.size):
        raise ValueError("coded changes are damaged: places and steps differ in number")
    gaps[marked] = wide.astype(np.int64)
    where = np.cumsum(gaps + 1) - 1
    if count and not (gaps.min() >= 0 and where[-1] < size):
        raise ValueError(f"coded changes reach outside of the {size} elements")
    return Moves(where, steps, far)


def _squeeze(stream: np.ndarray) -> bytes:
    """Huffman's code alone: there are no repetitions to look for, and not looking is fast."""
    raw = stream.tobytes()
    coder = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_HUFFMAN_ONLY)
    return coder.compress(raw) + coder.flush()
