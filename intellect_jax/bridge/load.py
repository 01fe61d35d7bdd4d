"""A Hugging Face folder → sharded arrays. Each process reads only what its devices hold, one shard at a time."""

from __future__ import annotations

import logging
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, Sharding, SingleDeviceSharding

from intellect_jax.bridge.families.table import Entry
from intellect_jax.bridge.huggingface import StoredTensors, entries, read_config, stored_dtype
from intellect_jax.bridge.policy import Policy
from intellect_jax.bridge.source import Source, find_folder
from intellect_jax.bridge.transpose import assign
from intellect_jax.errors import UserError
from intellect_jax.models.config import ModelConfig
from intellect_jax.models.transformer import Params, param_axes
from intellect_jax.parallel.mesh import tree_shardings
from intellect_jax.trees import TreePath, leaf, nested

log = logging.getLogger(__name__)

Bounds = tuple[tuple[int, int], ...]  # [start, stop) of every axis
_ALIGNMENT = 64  # bytes, at which a CPU device takes memory over without a copy


def load_pretrained(path: str | Path, mesh: Mesh | None = None, dtype: str = "float32") -> Policy:
    """The policy of a Hugging Face folder or Hub id, its parameters sharded over ``mesh`` (None: on one device).

    ``dtype``: ``float32`` or ``bfloat16``; what the family keeps in float32 stays so. Beyond the parameters, the host
    holds one shard of one array at a time. Raises UserError when the folder lacks something, is damaged, or its tensors
    are not those of its config.
    """
    source = Source(find_folder(path))
    cfg = read_config(source)
    start = time.monotonic()
    try:
        reader = ShardReader(source, cfg)
        params = _load(reader, cfg, mesh, dtype)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load the model in {path}: {error}") from error
    log.info("read %d bytes of %s in %.1f s", reader.bytes_read, source.folder, time.monotonic() - start)
    return Policy(params, cfg, source.folder)


class ShardReader:
    """Reads any slice of a stacked parameter array, touching only its bytes of the files."""

    def __init__(self, source: Source, cfg: ModelConfig):
        self.source = source
        self.bytes_read = 0  # as stored
        self._tensors = StoredTensors(source.read, frozenset(source.tensors))
        self._tensors.refuse_misfits(cfg)

    def read(self, stack: list[Entry], bounds: Bounds, dtype: np.dtype) -> np.ndarray:
        """``array[bounds]`` of the array that the entries of ``stack`` make up, on the host."""
        depth = len(stack[0].stack)
        target = _aligned([stop - start for start, stop in bounds], dtype)
        within = tuple(slice(*bound) for bound in bounds[depth:])
        jobs = (
            (entry, within, target[tuple(i - start for i, (start, _) in zip(entry.index, bounds, strict=False))])
            for entry in stack
            if all(start <= i < stop for i, (start, stop) in zip(entry.index, bounds, strict=False))
        )
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            self.bytes_read += sum(pool.map(lambda job: self._copy(*job), jobs))
        return target

    def _copy(self, entry: Entry, within: tuple[slice, ...], target: np.ndarray) -> int:
        view = entry.from_hf(self._tensors(entry.name))[within]
        assign(target, view)
        self.source.release(view)
        return view.nbytes


def _load(reader: ShardReader, cfg: ModelConfig, mesh: Mesh | None, dtype: str) -> Params:
    shardings = tree_shardings(mesh, param_axes(cfg)) if mesh else None
    alone = SingleDeviceSharding(jax.local_devices()[0])
    stacks: dict[TreePath, list[Entry]] = defaultdict(list)
    for entry in entries(cfg):
        stacks[entry.path].append(entry)
    return nested(
        {
            path: _sharded(reader, stack, leaf(shardings, path) if shardings else alone, stored_dtype(stack[0], dtype))
            for path, stack in stacks.items()
        }
    )


def _sharded(reader: ShardReader, stack: list[Entry], sharding: Sharding, dtype: np.dtype) -> jax.Array:
    shape = stack[0].stack + stack[0].shape
    made: dict[Bounds, jax.Array] = {}
    shards = []
    for device, bounds in _shards(sharding, shape):
        if bounds not in made:
            made[bounds] = jax.device_put(reader.read(stack, bounds, dtype), device).block_until_ready()
            shards.append(made[bounds])
        else:  # a replica is a copy of its own: donating one must not touch the other
            shards.append(jax.device_put(made[bounds], device))
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _shards(sharding: Sharding, shape: tuple[int, ...]) -> Iterator[tuple[Any, Bounds]]:
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        assert index is not None, "every addressable device holds a part"
        spans = (part.indices(size) for part, size in zip(index, shape, strict=True))
        yield device, tuple((start, stop) for start, stop, _ in spans)


def _aligned(shape: list[int], dtype: np.dtype) -> np.ndarray:
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)
