"""What was published last, on the devices, and what of it has changed since: only the changes cross to the host.

Every process looks at the shards on its own devices. Each is compared where it lies, and the places that changed are
compacted into a buffer for an eighth of its elements (small and float32 ones: for all), of which the part that holds
something is fetched. With more changes a delta would not pay, and none is made.

Shape suffixes: L layers that an array stacks, N elements of one in a shard, C places in its buffer.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from intellect_jax.bridge.families.table import Entry
from intellect_jax.bridge.huggingface import entries, stored_dtype
from intellect_jax.errors import UserError
from intellect_jax.models.config import ModelConfig
from intellect_jax.models.transformer import Params
from intellect_jax.transport import changes
from intellect_jax.transport.changes import Changes, TooMany
from intellect_jax.transport.deltas import Changed
from intellect_jax.transport.nccl.group import Lying
from intellect_jax.transport.safetensors_file import dtype_name
from intellect_jax.trees import TreePath, leaf

_SHARE = 8  # a buffer holds the changes of one element in so many
_BLOCKS = 16  # of a buffer
_THREADS = 8  # at most
_SMALL = 4096  # elements of which all may change: norms, biases


class Published:
    """The parameters of one published version as it holds them, sharded like the parameters themselves: in bfloat16 two
    bytes a parameter that stay on the devices."""

    def __init__(self, params: Params, cfg: ModelConfig, dtype: str):
        self.cfg, self.dtype = cfg, dtype
        self._dtypes = {entry.path: stored_dtype(entry, dtype) for entry in entries(cfg)}
        self._arrays = self._cast(params)

    def _cast(self, params: Params) -> dict[TreePath, jax.Array]:
        return {path: _as_published(leaf(params, path), dtype) for path, dtype in self._dtypes.items()}

    def lying(self) -> list[Lying]:
        """Every tensor where it lies; raises UserError for a policy that is in parts on several devices."""
        arrays = {path: _whole(array) for path, array in self._arrays.items()}
        return [
            Lying(
                entry.name,
                dtype_name(self._dtypes[entry.path]),
                entry.hf_shape,
                entry.transposed,
                arrays[entry.path],
                prod(entry.shape) * (int(np.ravel_multi_index(entry.index, entry.stack)) if entry.stack else 0),
                prod(entry.shape),
            )
            for entry in entries(self.cfg)
        ]

    def advance(self, params: Params) -> list[Changed]:
        """What of every tensor has changed, as far as this process has it, in the order of the model's tensors; from
        then on ``params`` are what was published. Raises TooMany, and then they are too."""
        before, self._arrays = self._arrays, self._cast(params)
        by_path: dict[TreePath, list[Entry]] = {}
        for entry in entries(self.cfg):
            by_path.setdefault(entry.path, []).append(entry)

        def look(path: TreePath) -> dict[str, Changes]:
            return dict(_by_tensor(by_path[path], *_changes(before[path], self._arrays[path])))

        largest_first = sorted(by_path, key=lambda path: -self._arrays[path].size)  # so that threads end together
        with ThreadPoolExecutor(_threads(self._arrays.values())) as pool:
            found = {name: each for part in pool.map(look, largest_first) for name, each in part.items()}
        return [Changed(e.name, self._dtypes[e.path], e.hf_shape, found[e.name]) for e in entries(self.cfg)]


def _whole(array: jax.Array) -> jax.Array:
    """On one device."""
    if not array.is_fully_replicated:
        raise UserError(
            f"weights.transport=nccl: the policy is in parts on {len(array.sharding.device_set)} devices, and must be "
            "sent by one that has all of it: weights.transport=http takes any mesh"
        )
    return array.addressable_data(0)


def _threads(arrays: Iterable[jax.Array]) -> int:
    """Several where numpy compares, which then leaves the interpreter free; else one, for the devices' memory."""
    return min(os.cpu_count() or 1, _THREADS) if all(map(_is_in_memory, arrays)) else 1


def _changes(old: jax.Array, new: jax.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flat indices into the whole array, and the bits there before and after, of this process's shards."""
    found = [_shard_changes(a, b, new.shape) for a, b in zip(_own(old), _own(new), strict=True)]
    if not found:
        return np.empty(0, np.int64), np.empty(0, _bits(new)), np.empty(0, _bits(new))
    where, before, after = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return where, before, after


def _own(array: jax.Array) -> list[jax.Shard]:
    """Each part of the array once, on one process."""
    return sorted((s for s in array.addressable_shards if s.replica_id == 0), key=lambda s: s.device.id)


def _shard_changes(old: jax.Shard, new: jax.Shard, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    flat, before, after = (_in_memory if _is_in_memory(new.data) else _fetched)(old.data, new.data)
    if new.data.shape == shape:
        return flat, before, after
    starts = [(bounds.start or 0) for bounds in new.index]
    places = zip(np.unravel_index(flat, new.data.shape), starts, strict=True)
    return np.ravel_multi_index(tuple(index + start for index, start in places), shape), before, after


def _is_in_memory(array: Array) -> bool:
    """Whether the host sees the device's memory: there numpy is quicker than a program that compacts."""
    return next(iter(array.devices())).platform == "cpu"


def _room(size: int, array: Array) -> int:
    """How many of ``size`` elements may change."""
    return size if size <= _SMALL or array.dtype.itemsize > 2 else size // _SHARE


def _in_memory(old: Array, new: Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flat indices in the shard and the bits there before and after; raises TooMany."""
    return changes.find(np.asarray(old), np.asarray(new), _room(new.size, new))


def _fetched(old: Array, new: Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same, found on the device; layer by layer where the array stacks some."""
    layers = new.shape[0] if new.ndim > 2 else 1
    size = new.size // layers
    room = _room(size, new)
    counts_L, blocks = _compact(old, new, layers, room)
    counts_L = np.asarray(counts_L)
    if counts_L.max(initial=0) > room:
        raise TooMany(f"{counts_L.max()} of {size} elements")
    found = blocks[: -(-int(counts_L.max(initial=0)) // _width(room))]
    held_LC = np.arange(len(found) * _width(room)) < counts_L[:, None]
    where, before, after = (
        np.concatenate([np.asarray(block[part]) for block in found], axis=1)[held_LC] if found else np.empty(0, kind)
        for part, kind in enumerate((np.int32, _bits(new), _bits(new)))
    )
    return where + np.repeat(np.arange(layers, dtype=np.int64) * size, counts_L), before, after


@partial(jax.jit, static_argnums=(2, 3))
def _compact(old: Array, new: Array, layers: int, room: int) -> tuple[Array, list[tuple[Array, Array, Array]]]:
    """How many elements of each layer differ, int32 [L]; and of the first C of them the index in the layer, and the
    bits before and after, in blocks [L, C / blocks], so that only those that hold something have to be fetched."""
    before_LN, after_LN = (
        jax.lax.bitcast_convert_type(array, _bits(array)).reshape(layers, -1) for array in (old, new)
    )
    width = _width(room)
    slots = -(-room // width) * width if room else 0

    def layer(pair: tuple[Array, Array]) -> tuple[Array, Array, Array, Array]:
        before_N, after_N = pair
        changed_N = before_N != after_N
        where_C = jnp.nonzero(changed_N, size=slots, fill_value=0)[0].astype(jnp.int32)
        return changed_N.sum(dtype=jnp.int32), where_C, before_N[where_C], after_N[where_C]

    # One layer after the other: indices stay below 2^31, and temporaries are those of a layer.
    counts_L, *compacted = jax.lax.map(layer, (before_LN, after_LN))
    parts = [jnp.split(array_LC, slots // width, axis=1) for array_LC in compacted] if slots else [[], [], []]
    return counts_L, list(zip(*parts, strict=True))


def _width(room: int) -> int:
    """Places of one block."""
    return max(1, -(-room // _BLOCKS))


def _bits(array: Array) -> np.dtype:
    return np.dtype(f"<u{array.dtype.itemsize}")


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
    order = np.argsort(stacked * size + inside)  # no two alike
    stacked, inside, before, after = (array[order] for array in (stacked, inside, before, after))
    for entry in of:
        number = int(np.ravel_multi_index(entry.index, entry.stack)) if entry.stack else 0
        here = slice(*np.searchsorted(stacked, (number, number + 1)))
        yield entry.name, Changes(inside[here], before[here], after[here])
