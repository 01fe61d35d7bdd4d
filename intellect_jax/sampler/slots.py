"""Which request decodes in which slot, and the arrays that tell the decode program about it."""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numpy as np

from intellect_jax.sampler.requests import Request


class DecodeInputs(NamedTuple):
    """One row a slot; idle slots hold zeros and decode a token that nobody reads."""

    tokens: np.ndarray  # int32 [B]: the last token, not processed yet
    positions: np.ndarray  # int32 [B]: where it stands
    seeds: np.ndarray  # uint32 [B, 2]: high and low word of the request's seed
    temperature: np.ndarray  # float32 [B]
    top_p: np.ndarray  # float32 [B]


def idle_inputs(slots: int) -> DecodeInputs:
    return DecodeInputs(
        np.zeros(slots, np.int32),
        np.zeros(slots, np.int32),
        np.zeros((slots, 2), np.uint32),
        np.zeros(slots, np.float32),
        np.ones(slots, np.float32),
    )


class SlotTable:
    """The running requests. Lower slots are taken first, so that few requests decode in a small program."""

    def __init__(self, slots: int):
        self.running: dict[int, Request] = {}
        self.inputs = idle_inputs(slots)
        self._free = list(range(slots))

    @property
    def free(self) -> int:
        return len(self._free)

    def leading_inputs(self, buckets: tuple[int, ...]) -> DecodeInputs:
        """Of the smallest number of leading slots, out of ``buckets``, that holds every running request."""
        count = next(b for b in buckets if b > max(self.running))
        return DecodeInputs(*(values[:count] for values in self.inputs))

    def join(self, request: Request) -> int:
        """Gives the request a slot; IndexError when all are taken."""
        slot = heapq.heappop(self._free)
        self.running[slot] = request
        seed = request.params.seed
        self.inputs.seeds[slot] = (seed >> 32, seed & 0xFFFFFFFF)
        self.inputs.temperature[slot] = request.params.temperature
        self.inputs.top_p[slot] = request.params.top_p
        self._point(slot, request)
        return slot

    def advance(self, slot: int, token_ids: list[int], logprobs: list[float], version) -> int:
        """Hands sampled tokens to the slot's request; returns how many it took."""
        request = self.running[slot]
        taken = request.extend(token_ids, logprobs, version)
        self._point(slot, request)
        return taken

    def leave(self, slot: int) -> Request:
        """Frees the slot of a request that is done or dropped."""
        for values, idle in zip(self.inputs, (0, 0, 0, 0.0, 1.0), strict=True):
            values[slot] = idle
        heapq.heappush(self._free, slot)
        return self.running.pop(slot)

    def _point(self, slot: int, request: Request) -> None:
        """The last token of the history is the next one to process."""
        self.inputs.tokens[slot] = (request.token_ids or request.prompt)[-1]
        self.inputs.positions[slot] = len(request.prompt) + len(request.token_ids) - 1
