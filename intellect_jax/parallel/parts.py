"""Each process loads only its part of a batch: which rows that is, and how they become arrays of the whole mesh.

A batch is [microbatch, row, …]. Part p of n parts has rows p, p + n, … of every microbatch, in this order, as
``transport.batches`` sends them. Processes whose devices share their rows, for instance because a sequence is sharded
over both, load the same part.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding


@dataclass(frozen=True)
class Share:
    """A process's part of every microbatch."""

    part: int
    parts: int
    counts: bool  # of the processes that load this part, one counts its tokens
    rows: np.ndarray  # int [R / parts]: where the part's rows lie in the microbatch, increasing


def own_share(where: NamedSharding, shape: tuple[int, int, int], process: int) -> Share:
    """The part of batches [M, R, S], sharded as ``where`` says, that ``process`` loads.

    Where the rows of two processes overlap without being the same, each loads the whole batch.
    """
    held: dict[int, set[int]] = defaultdict(set)
    places: dict[Any, Any] = {**where.devices_indices_map(shape)}
    for device, (_, rows, _) in places.items():
        held[device.process_index].update(range(*rows.indices(shape[1])))
    return share_out({of: tuple(sorted(rows)) for of, rows in held.items()}, process)


def share_out(held: dict[int, tuple[int, ...]], process: int) -> Share:
    """The part of ``process``, where ``held`` says which rows each process's devices hold, all rows among them."""
    groups, everything = sorted(set(held.values())), sorted(set().union(*held.values()))
    if len(set(map(len, groups))) > 1 or sum(map(len, groups)) > len(everything):
        return Share(0, 1, process == min(held), np.array(everything))
    mine = held[process]
    first = min(other for other, rows in held.items() if rows == mine)
    return Share(groups.index(mine), len(groups), process == first, np.array(mine))


def place(part: np.ndarray, where: NamedSharding, share: Share) -> jax.Array:
    """The whole array [M, R, …] of which ``part`` [M, R / parts, …] has this process's rows."""
    shape = (part.shape[0], part.shape[1] * share.parts, *part.shape[2:])

    def shard(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None, "every addressable device holds a part"
        start, stop, _ = index[1].indices(shape[1])
        first = int(np.searchsorted(share.rows, start))
        return part[index[0], first : first + stop - start, *index[2:]]

    return jax.make_array_from_callback(shape, where, shard)


def replicate(value: np.ndarray | np.generic, where: NamedSharding) -> jax.Array:
    """``value``, the same in every process, on every device."""
    return jax.make_array_from_callback(np.shape(value), where, lambda index: np.asarray(value)[index])
