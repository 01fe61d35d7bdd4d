"""The two ends of an export: pieces of sharded arrays to the host, and bytes to files behind the computation's back."""

from __future__ import annotations

import os
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from intellect_jax.bridge.families.table import Entry
from intellect_jax.models.lora import Adapter, merged
from intellect_jax.models.lora_shape import Lora, factor_paths, stack_axes
from intellect_jax.models.transformer import Params
from intellect_jax.trees import leaf

_FLUSH = 256 << 20  # bytes between flushes to the disk, which then writes while the next ones are made


class Fetcher:
    """Fetches parameters layer by layer: the host holds one layer of two arrays at a time, never the model.

    Every process must fetch the same pieces in the same order: pieces of arrays on several hosts are gathered.
    """

    def __init__(self, params: Params, adapter: Adapter | None = None):
        self._params = jax.tree.map(jnp.asarray, params)
        self._adapter = adapter
        self._pieces: OrderedDict[tuple[Any, ...], jax.Array] = OrderedDict()

    def __call__(self, entry: Entry, dtype: np.dtype) -> Callable[[], np.ndarray]:
        """A function that brings what the policy has at ``entry`` to the host, in ``dtype`` or as it is there.

        An adapter is merged in float32 on the way.
        """
        layer, within = entry.index[:1], entry.index[1:]
        key = (entry.path, layer, dtype)
        array = leaf(self._params, entry.path)
        adapter = self._adapter if self._adapter and self._adapter.lora.adapts(entry.path) else None
        if _in_host_memory(array) and adapter is None:
            return lambda: np.asarray(array)[entry.index]
        if key not in self._pieces:
            where, at = _everywhere(array.sharding), tuple(map(np.int32, layer))
            if adapter:
                a, b = (jnp.asarray(leaf(adapter.factors, path)) for path in factor_paths(entry.path))
                batch_axes = stack_axes(entry.path) - len(layer)
                piece = _merger(where, dtype, adapter.lora, batch_axes)(array, a, b, at)
            else:
                piece = _slicer(where, dtype)(array, at)
            # One gather at a time: a process that only takes part would start many at once, and hold their memory. On
            # CPUs, whose threads wait for the other processes, that ended in all waiting for each other for ever.
            self._pieces[key] = jax.block_until_ready(piece.addressable_data(0))
            if len(self._pieces) > 2:  # gate and up of fused experts alternate
                self._pieces.popitem(last=False)
        piece = self._pieces[key]
        return lambda: np.asarray(piece)[within]  # the copy to the host stays with the piece


class BackgroundWriter:
    """Runs calls in the order they come, in a thread of its own; a few may wait, then the caller does."""

    def __init__(self, waiting: int = 4):
        self._waiting = waiting
        self._calls: deque[Future[None]] = deque()
        self._thread = ThreadPoolExecutor(1)

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._thread.shutdown(cancel_futures=kind is not None)
        while self._calls and kind is None:
            self._calls.popleft().result()

    def call(self, function: Callable[..., None], *args: Any) -> None:
        """Raises what an earlier call raised."""
        self._calls.append(self._thread.submit(function, *args))
        while len(self._calls) > self._waiting:
            self._calls.popleft().result()


class FlushingFile:
    """A file whose bytes reach the disk on the way, so that closing it does not take long."""

    def __init__(self, path: Path):
        self._file = path.open("wb", buffering=0)
        self._unflushed = 0

    def write(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        while rest:  # one call writes 2 GiB at most
            written = self._file.write(rest)
            assert written is not None, "a blocking file"
            rest = rest[written:]
            self._unflushed += written
        if self._unflushed > _FLUSH:
            os.fsync(self._file.fileno())
            self._unflushed = 0

    def close(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()


@lru_cache(maxsize=64)
def _slicer(where: Sharding, dtype: np.dtype) -> Callable[..., jax.Array]:
    return jax.jit(lambda array, index: array[index].astype(dtype), out_shardings=where)


@lru_cache(maxsize=64)
def _merger(where: Sharding, dtype: np.dtype, lora: Lora, batch_axes: int) -> Callable[..., jax.Array]:
    def merge(array, a, b, index):
        return merged(array[index], a[index], b[index], lora, batch_axes).astype(dtype)

    return jax.jit(merge, out_shardings=where)


def _in_host_memory(array: jax.Array) -> bool:
    """Whether numpy can look at the whole array without a copy."""
    return array.is_fully_addressable and {d.platform for d in array.devices()} == {"cpu"} and len(array.devices()) == 1


def _everywhere(sharding: Sharding) -> Sharding:
    return NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else sharding
