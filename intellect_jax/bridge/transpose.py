"""Copies between arrays whose memory orders differ: Hugging Face stores the transpose of what the policy computes with.

numpy walks such a copy along the target and misses the cache at every element of the source. Tile by tile it is three
to eight times faster.
"""

from __future__ import annotations

import numpy as np

TILE = 256
_PADDING = 32  # elements: rows whose distance is a power of two would share few cache lines


def assign(target: np.ndarray, source: np.ndarray) -> None:
    """``target[...] = source``, cast to the target's dtype; fast for any order of the source's axes."""
    if source.shape != target.shape:
        raise ValueError(f"cannot assign shape {source.shape} to shape {target.shape}")
    if source.dtype == target.dtype:  # copies of bare bits are faster than those of bfloat16
        bits = np.dtype(f"u{source.dtype.itemsize}")
        source, target = source.view(bits), target.view(bits)
    axes = _nearest_axis(source), _nearest_axis(target)
    if axes[0] == axes[1]:
        target[...] = source
        return
    sources, targets = np.moveaxis(source, axes, (-2, -1)), np.moveaxis(target, axes, (-2, -1))
    for at in np.ndindex(sources.shape[:-2]):
        _assign_tiles(targets[at], sources[at])


def _nearest_axis(array: np.ndarray) -> int:
    """The axis whose neighbours are nearest in memory; the last one where several are."""
    strides = [stride if size > 1 else np.inf for size, stride in zip(array.shape, array.strides, strict=True)]
    nearest = min(strides, default=np.inf)
    return max((i for i, stride in enumerate(strides) if stride == nearest), default=array.ndim - 1)


def _assign_tiles(target: np.ndarray, source: np.ndarray) -> None:
    """[a, b], where the source is contiguous along a and the target along b."""
    buffer = np.empty((TILE, TILE + _PADDING), target.dtype)
    for b in range(0, source.shape[1], TILE):
        for a in range(0, source.shape[0], TILE):
            part = source[a : a + TILE, b : b + TILE].T
            tile = buffer[: part.shape[0], : part.shape[1]]
            tile[...] = part  # along the source's memory, with the cast
            target[a : a + TILE, b : b + TILE] = tile.T
