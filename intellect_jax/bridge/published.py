"""What was published last, on the devices, and what of it has changed since: only the changes cross to the host.

Every process looks at the shards on its own devices. Each is compared where it lies, and the places that changed are
compacted into a buffer for an eighth of its elements (small and float32 ones: for all); with more of them a delta would
not pay, and none is made.

Shape suffixes: N elements of a shard, C places in the buffer.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from intellect_jax.bridge.families.table import Entry
from intellect_jax.bridge.huggingface import entries, stored_dtype
from intellect_jax.models.config import ModelConfig
from intellect_jax.models.transformer import Params
from intellect_jax.transport.changes import Changes
from intellect_jax.transport.deltas import Changed
from intellect_jax.trees import TreePath, leaf

_SHARE = 8  # a buffer holds the changes of one element in so many
_SMALL = 4096  # elements of which all may change: norms, biases


class TooMany(Exception):
    """More has changed than a delta is good for."""


class Published:
    """The parameters of one published version as it holds them, sharded like the parameters themselves."""

    def __init__(self, params: Params, cfg: ModelConfig, dtype: str):
        self.cfg, self.dtype = cfg, dtype
        self._dtypes = {entry.path: stored_dtype(entry, dtype) for entry in entries(cfg)}
        self._arrays = self._cast(params)

    def _cast(self, params: Params) -> dict[TreePath, jax.Array]:
        return {path: _as_published(leaf(params, path), dtype) for path, dtype in self._dtypes.items()}

    def advance(self, params: Params) -> list[Changed]:
        """What of every tensor has changed, as far as this process has it, in the order of the model's tensors; from
        then on ``params`` are what was published. Raises TooMany, and then they are too."""
        before, self._arrays = self._arrays, self._cast(params)
        by_path: dict[TreePath, list[Entry]] = {}
        for entry in entries(self.cfg):
            by_path.setdefault(entry.path, []).append(entry)
        found: dict[str, Changes] = {}
        for path, of in by_path.items():
            found |= _by_tensor(of, *_changes(before[path], self._arrays[path]))
        return [Changed(e.name, self._dtypes[e.path], e.hf_shape, found[e.name]) for e in entries(self.cfg)]


def _changes(old: jax.Array, new: jax.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flat indices into the whole array, and the bits there before and after, of this process's shards."""
    found = [_shard_changes(a, b, new.shape) for a, b in zip(_own(old), _own(new), strict=True)]
    if not found:
        bits = np.dtype(f"<u{new.dtype.itemsize}")
        return np.empty(0, np.int64), np.empty(0, bits), np.empty(0, bits)
    where, before, after = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return where, before, after


def _own(array: jax.Array) -> list[jax.Shard]:
    """Each part of the array once, on one process."""
    return sorted((s for s in array.addressable_shards if s.replica_id == 0), key=lambda s: s.device.id)


def _shard_changes(old: jax.Shard, new: jax.Shard, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    size = prod(new.data.shape)
    room = size if size <= _SMALL or new.data.dtype.itemsize > 2 else size // _SHARE
    count, *compacted = _compact(old.data, new.data, room)
    many = int(count)
    if many > room:
        raise TooMany(f"{many} of {size} elements")
    where, before, after = (np.asarray(array)[:many] for array in compacted)
    starts = [(bounds.start or 0) for bounds in new.index]
    at = np.unravel_index(where.astype(np.int64), new.data.shape) if shape else ()
    moved = tuple(index + start for index, start in zip(at, starts, strict=True))
    return np.ravel_multi_index(moved, shape).astype(np.int64) if shape else where, before, after


@partial(jax.jit, static_argnums=2)
def _compact(old: Array, new: Array, size: int) -> tuple[Array, Array, Array, Array]:
    """How many elements differ, and of the first C of them flat index and bits before and after."""
    kind = jnp.dtype(f"uint{8 * new.dtype.itemsize}")
    before, after = (jax.lax.bitcast_convert_type(array, kind).reshape(-1) for array in (old, new))
    changed = before != after
    where = jnp.nonzero(changed, size=size, fill_value=0)[0].astype(jnp.int32)
    return changed.sum(), where, before[where], after[where]


@partial(jax.jit, static_argnums=1)
def _as_published(array: Array, dtype: np.dtype) -> Array:
    return array.astype(dtype)


def _by_tensor(
    of: list[Entry], where: np.ndarray, before: np.ndarray, after: np.ndarray
) -> Iterator[tuple[str, Changes]]:
    """The changes of one array of the tree as those of its Hugging Face tensors."""
    first = of[0]
    size = prod(first.shape)
    stacked, inside = np.divmod(where, size)
    if first.transposed:  # [in, out] in the tree, [out, in] in the file
        out, into = first.hf_shape
        inside = inside % out * into + inside // out
    order = np.argsort(stacked * size + inside, kind="stable")
    stacked, inside, before, after = (array[order] for array in (stacked, inside, before, after))
    for entry in of:
        number = int(np.ravel_multi_index(entry.index, entry.stack)) if entry.stack else 0
        here = slice(*np.searchsorted(stacked, (number, number + 1)))
        yield entry.name, Changes(inside[here], before[here], after[here])
