"""Prefill batches: which histories are computed together, padded to which shape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from intellect_jax.sampler.programs import Shapes
from intellect_jax.sampler.requests import Request


@dataclass(frozen=True)
class PrefillBatch:
    tokens: np.ndarray  # int32 [R, S]: histories without their last token, padded with 0
    lengths: np.ndarray  # int32 [R], 0 in unused rows
    row_of_slot: np.ndarray  # int32 [slots]: the row whose keys and values a slot gets, -1: none
    slots: list[int]  # those that get any


def prefill_batches(requests: dict[int, Request], shapes: Shapes) -> Iterator[PrefillBatch]:
    """Everything but the last token of each slot's history; requests with equal histories share a row.

    Short ones come first, so that a batch pads to its own longest. A history of one token needs no prefill.
    """
    slots_of: dict[tuple[int, ...], list[int]] = {}
    for slot, request in requests.items():
        history = tuple(request.history()[:-1])
        if history:
            slots_of.setdefault(history, []).append(slot)
    ordered = sorted(slots_of.items(), key=lambda item: len(item[0]))
    rows = max(shapes.row_buckets)
    for first in range(0, len(ordered), rows):
        yield _batch(ordered[first : first + rows], shapes)


def _batch(histories: list[tuple[tuple[int, ...], list[int]]], shapes: Shapes) -> PrefillBatch:
    shape = shapes.prefill_shape(len(histories), len(histories[-1][0]))
    tokens, lengths = np.zeros(shape, np.int32), np.zeros(shape[0], np.int32)
    row_of_slot = np.full(shapes.slots, -1, np.int32)
    for row, (history, slots) in enumerate(histories):
        tokens[row, : len(history)] = history
        lengths[row] = len(history)
        row_of_slot[slots] = row
    return PrefillBatch(tokens, lengths, row_of_slot, [slot for _, slots in histories for slot in slots])
