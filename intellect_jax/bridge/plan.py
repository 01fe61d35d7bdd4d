"""What an export writes: which tensors, of which bytes, in which files. Known before a byte is fetched. No JAX."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

from intellect_jax.bridge.families.table import Entry
from intellect_jax.bridge.huggingface import entries, fused_name, is_ignored, stored_dtype
from intellect_jax.bridge.source import FLOAT32_SUFFIX, Source
from intellect_jax.models.config import ModelConfig
from intellect_jax.transport.safetensors_file import DTYPES, Stored
from intellect_jax.trees import TreePath


@dataclass(frozen=True)
class Output:
    """A tensor to write. Its bytes are those of its ``parts`` one after the other; without parts, the source's own."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    parts: tuple[Entry, ...] = ()

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def outputs(cfg: ModelConfig, dtype: str, source: Source | None) -> list[Output]:
    """Every tensor of an export in ``dtype``: with the names and the tensors of ``source``, where there is one."""
    stored = {name: where for name, (_, where) in source.tensors.items()} if source else {}
    parts: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries(cfg):
        fused = fused_name(entry.name)
        parts[fused if fused in stored else entry.name].append(entry)
        if cfg.tie_word_embeddings and entry.path[0] == "embed" and "lm_head.weight" in stored:
            parts["lm_head.weight"].append(entry)  # the source repeats the embedding
    kept = _kept(stored)
    made = _by_array([_made(name, of, kept.get(name) or stored_dtype(of[0], dtype)) for name, of in parts.items()])
    passed = [
        Output(name, DTYPES[where.dtype], where.shape)
        for name, where in stored.items()
        if name not in parts and is_ignored(name, cfg)
    ]
    return made + passed


def _by_array(tensors: list[Output]) -> list[Output]:
    """The same layer by layer, where tensors of one array come together: a layer of an array is fetched once."""
    rank: dict[tuple[TreePath, tuple[int, ...]], int] = {}
    places = [(tensor.parts[0].path, tensor.parts[0].index[:1]) for tensor in tensors]
    order = [rank.setdefault(place, len(rank)) for place in places]
    return [tensor for _, tensor in sorted(zip(order, tensors, strict=True), key=lambda pair: pair[0])]


def shards(tensors: Iterable[Output], max_bytes: int) -> list[list[Output]]:
    """The tensors in groups of at most ``max_bytes``; a larger tensor stands alone."""
    return list(_shards(tensors, max_bytes))


def file_names(count: int) -> list[str]:
    """Of ``count`` weight files, as transformers calls them."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]


def _kept(stored: dict[str, Stored]) -> dict[str, np.dtype]:
    """Tensors that go out in the source's dtype, whatever is asked for: what nothing trains, and what is float32 among
    bfloat16, as the routers in folders of transformers from 5.24 on."""
    mixed = any(where.dtype == "BF16" for where in stored.values())
    return {
        name: DTYPES[where.dtype]
        for name, where in stored.items()
        if name.endswith(FLOAT32_SUFFIX) or (mixed and where.dtype == "F32")
    }


def _made(name: str, parts: list[Entry], dtype: np.dtype) -> Output:
    first = parts[0]
    if len(parts) == 1:
        return Output(name, dtype, first.hf_shape, tuple(parts))
    experts, (rows, columns) = first.stack[-1], first.hf_shape
    ordered = sorted(parts, key=lambda entry: (entry.index, entry.name))  # each expert's gate above its up
    return Output(name, dtype, (experts, len(parts) // experts * rows, columns), tuple(ordered))


def _shards(tensors: Iterable[Output], max_bytes: int) -> Iterator[list[Output]]:
    shard: list[Output] = []
    size = 0
    for tensor in tensors:
        if shard and size + tensor.nbytes > max_bytes:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += tensor.nbytes
    yield shard
