"""Prefill batches: which parts of which histories are computed together, padded to which shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from intellect_jax.sampler.pages import NOWHERE
from intellect_jax.sampler.shapes import Shapes


class PrefillBatch(NamedTuple):
    tokens: np.ndarray  # int32 [R, S]: parts of histories, padded with 0
    starts: np.ndarray  # int32 [R]: where in its history each part starts
    lengths: np.ndarray  # int32 [R], 0 in unused rows
    tables: np.ndarray  # int32 [R, N]: the history's pages


class Plan(NamedTuple):
    """Batches, to be run in this order, then pages to copy: (source, target)."""

    batches: list[PrefillBatch]
    copies: list[tuple[int, int]]


class _Part(NamedTuple):
    start: int
    tokens: Sequence[int]
    table: np.ndarray


def empty_batch(rows: int, length: int, width: int) -> PrefillBatch:
    starts, lengths = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
    tables = np.full((rows, width), NOWHERE, np.int32)
    return PrefillBatch(np.zeros((rows, length), np.int32), starts, lengths, tables)


def plan_prefill(
    histories: Mapping[int, Sequence[int]], there: Mapping[int, int], tables: np.ndarray, shapes: Shapes
) -> Plan:
    """What makes all but the last token of each slot's history be there.

    ``there``: how many of a slot's tokens are, in pages that it shares. ``tables``: [slots, pages]. Equal histories are
    computed once, and their pages copied. A history longer than the largest bucket takes several parts. Whatever a part
    reads of its own history or of one it shares pages with is computed before or in the same batch, as parts are in the
    order of their starts; among those, short ones come first, so that a batch pads to its own longest.
    """
    parts: list[_Part] = []
    copies: list[tuple[int, int]] = []
    first: dict[tuple[int, ...], int] = {}
    for slot, history in histories.items():
        tokens = tuple(history[:-1])
        twin = first.setdefault(tokens, slot)
        if twin == slot:
            parts += _parts(tokens, there[slot], tables[slot], max(shapes.length_buckets))
        else:
            index = slice(there[slot] // shapes.page_size, -(-len(tokens) // shapes.page_size))
            copies += zip(tables[twin, index].tolist(), tables[slot, index].tolist(), strict=True)
    parts.sort(key=lambda part: (part.start, len(part.tokens)))
    rows = max(shapes.row_buckets)
    return Plan([_batch(parts[i : i + rows], shapes) for i in range(0, len(parts), rows)], copies)


def _parts(tokens: Sequence[int], start: int, table: np.ndarray, longest: int) -> list[_Part]:
    return [_Part(at, tokens[at : at + longest], table) for at in range(start, len(tokens), longest)]


def _batch(parts: list[_Part], shapes: Shapes) -> PrefillBatch:
    end = max(part.start + len(part.tokens) for part in parts)
    batch = empty_batch(*shapes.prefill_shape(len(parts), max(len(part.tokens) for part in parts), end))
    for row, part in enumerate(parts):
        batch.tokens[row, : len(part.tokens)] = part.tokens
        batch.starts[row], batch.lengths[row] = part.start, len(part.tokens)
        batch.tables[row] = part.table[: batch.tables.shape[1]]
    return batch
