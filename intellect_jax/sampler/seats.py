"""The running requests: each has a slot to decode in and pages for its history, or it waits outside."""

from __future__ import annotations

import numpy as np

from intellect_jax.sampler.batches import Plan, plan_prefill
from intellect_jax.sampler.pages import PagePool
from intellect_jax.sampler.requests import Request
from intellect_jax.sampler.shapes import Shapes
from intellect_jax.sampler.slots import DecodeInputs, SlotTable
from intellect_jax.sampler.tables import PageTables
from intellect_jax.types import Version


class Seats:
    """Between :meth:`fill` and the next :meth:`join`, all but the last token of every running request are in its pages.

    There are pages for the longest request at least, so that the oldest one always gets on.
    """

    def __init__(self, shapes: Shapes):
        self._shapes = shapes
        self._slots = SlotTable(shapes.slots)
        self._pages = PageTables(
            shapes.slots, shapes.width, PagePool(shapes.pages, shapes.page_size, shapes.prefix_reuse)
        )
        self._joined: dict[int, int] = {}  # since the last fill: slot → tokens that are there already

    @property
    def running(self) -> dict[int, Request]:
        """By slot, the oldest first."""
        return self._slots.running

    @property
    def free(self) -> int:
        return self._slots.free

    @property
    def pool(self) -> PagePool:
        return self._pages.pool

    def join(self, request: Request) -> bool:
        """False, and nothing happens, while there are not enough pages; IndexError when all slots are taken."""
        slot = self._slots.join(request)
        there = self._pages.join(slot, request.history(), self._after_round(request))
        if there is None:
            self._slots.leave(slot)
            return False
        self._joined[slot] = there
        return True

    def leave(self, slot: int) -> Request:
        """Frees slot and pages of a request that is done, dropped, or to wait again."""
        self._pages.leave(slot)
        self._joined.pop(slot, None)
        return self._slots.leave(slot)

    def forget(self) -> None:
        """The weights changed: whoever joins from now on shares nothing of what the old ones computed."""
        self._pages.forget()

    def rejoin(self) -> None:
        """All running requests anew, as if they joined now. What they share they share again, so there is room."""
        for slot in self.running:
            self._pages.leave(slot)
        self._pages.forget()
        for slot, request in self.running.items():
            history = request.history()
            there = self._pages.join(slot, history, len(history) - 1)
            assert there is not None, "what is there needs no more pages than before"
            self._joined[slot] = there

    def fill(self) -> Plan:
        """What is to be computed, before anything else is, for those who joined."""
        histories = {slot: self.running[slot].history() for slot in self._joined}
        plan = plan_prefill(histories, self._joined, self._pages.tables, self._shapes)
        self._joined.clear()
        return plan

    def without_room(self) -> int | None:
        """Gives every running request pages for a round of decoding; when they do not suffice, the slot of the
        youngest one, which has to leave before this is called again."""
        for slot, request in self.running.items():
            if not self._pages.grow(slot, self._after_round(request)):
                return next(reversed(self.running))
        return None

    def inputs(self) -> tuple[DecodeInputs, np.ndarray]:
        """Of the leading slots that hold all running requests: what to decode, and page tables int32 [B, N]."""
        inputs = self._slots.leading_inputs(self._shapes.slot_buckets)
        width = self._shapes.decode_width(max(map(self._after_round, self.running.values())))
        return inputs, self._pages.tables[: len(inputs.tokens), :width]

    def advance(self, slot: int, token_ids: list[int], logprobs: list[float], version: Version) -> int:
        """Hands sampled tokens to the slot's request; returns how many it took."""
        taken = self._slots.advance(slot, token_ids, logprobs, version)
        self._pages.filled(slot, self.running[slot].history())
        return taken

    def table(self, slot: int) -> np.ndarray:
        """The slot's pages, int32 [width]."""
        return self._pages.tables[slot].copy()

    def _after_round(self, request: Request) -> int:
        """Tokens whose keys and values a round of decoding leaves in the request's pages; it throws others away."""
        length = len(request.prompt) + len(request.token_ids)
        last = len(request.prompt) + request.params.max_tokens - 1  # never processed
        return min(length + self._shapes.decode_steps - 1, last)
