"""Every slot's page table: where the tokens of its history lie in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from intellect_jax.sampler.pages import NOWHERE, PagePool


@dataclass
class _Holding:
    pages: list[int]  # of the history, in order
    named: int = 0  # how many of them were full when last looked at
    name: int | None = None  # of the history up to their end; None: of several versions, so nobody else's


class PageTables:
    """Row s of ``tables`` holds slot s's pages, then ``NOWHERE``; all of it ``NOWHERE`` where the slot has none.

    ``length``s are of histories, in tokens. A token is *there* once its key and value are: all but a history's last.
    """

    def __init__(self, slots: int, width: int, pool: PagePool):
        """``width``: pages of the longest history."""
        self.pool = pool
        self.tables = np.full((slots, width), NOWHERE, np.int32)
        self._holdings: dict[int, _Holding] = {}

    def join(self, slot: int, history: Sequence[int], length: int) -> int | None:
        """Gives the slot pages for ``length`` tokens, all but the last of ``history`` at least; returns how many of
        these are there already, in shared pages.

        None, and nothing happens, while there are not enough pages. The caller then makes the other tokens be there,
        all but the last, before anything is decoded: full pages are offered to others at once.
        """
        prefix = self.pool.take_prefix(history[:-1])
        more = self.pool.allocate(self._count(length) - len(prefix.pages))
        if more is None:
            self.pool.release(prefix.pages)
            return None
        holding = _Holding(prefix.pages + more, len(prefix.pages), prefix.name)
        self._holdings[slot] = holding
        self.tables[slot, : len(holding.pages)] = holding.pages
        self.filled(slot, history)
        return len(prefix.pages) * self.pool.size

    def grow(self, slot: int, length: int) -> bool:
        """Gives the slot pages for ``length`` tokens; False, and nothing happens, while there are not enough."""
        pages = self._holdings[slot].pages
        missing = self._count(length) - len(pages)
        if missing <= 0:
            return True
        more = self.pool.allocate(missing)
        if more is None:
            return False
        self.tables[slot, len(pages) : len(pages) + len(more)] = more
        pages += more
        return True

    def filled(self, slot: int, history: Sequence[int]) -> None:
        """Offers the pages that ``history`` has filled to others."""
        holding, size = self._holdings[slot], self.pool.size
        full = (len(history) - 1) // size
        if not self.pool.reuse or holding.name is None:
            return
        for index in range(holding.named, full):
            tokens = history[index * size : (index + 1) * size]
            holding.name = self.pool.name(holding.name, tokens, holding.pages[index])
        holding.named = max(full, holding.named)

    def leave(self, slot: int) -> None:
        self.pool.release(self._holdings.pop(slot).pages)
        self.tables[slot] = NOWHERE

    def forget(self) -> None:
        """After a change of weights: nobody may share what the old ones computed. Who has pages keeps them."""
        self.pool.forget()
        for holding in self._holdings.values():
            holding.name = None

    def _count(self, length: int) -> int:
        return -(-length // self.pool.size)
