"""Which page of the key/value cache belongs to whom, and which full pages hold a prefix that others may read too.

Host-side bookkeeping alone; whose tokens lie where on the device follows from the numbers it hands out.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

NOWHERE = 0  # the page that idle slots and padding write to; never handed out


class Prefix(NamedTuple):
    """Pages that hold the first tokens of a history, and the name of the history up to their end."""

    pages: list[int]
    name: int


class PagePool:
    """Pages 1 … ``count`` of ``size`` tokens each. Always, for every page, exactly one holds:

    - it is free: nobody has it and what it holds is forgotten;
    - it is in use: as many users as took it or were handed it, and have not released it;
    - it is kept: nobody has it, and it holds a named prefix. The one unused for longest is given up first.

    A page has a name only when it is full, so that nobody writes to what several read. A name stands for the tokens of
    the page and all before it (no hashes: two histories never share one), until :meth:`forget`.
    """

    def __init__(self, count: int, size: int, reuse: bool = True):
        """Without ``reuse`` no page gets a name."""
        self.count, self.size, self.reuse = count, size, reuse
        self._free = list(range(count, 0, -1))
        self._users: Counter[int] = Counter()
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._named: dict[tuple[int, tuple[int, ...]], tuple[int, int]] = {}  # (parent, tokens) → name, page
        self._key_of: dict[int, tuple[int, tuple[int, ...]]] = {}  # of named pages
        self._names = 0
        self.root = 0  # name of the empty history
        self.hits = 0  # pages that were taken because of what they hold

    @property
    def available(self) -> int:
        """Pages that :meth:`allocate` could hand out."""
        return len(self._free) + len(self._kept)

    @property
    def used(self) -> int:
        return len(self._users)

    def take_prefix(self, tokens: Sequence[int]) -> Prefix:
        """The longest prefix of whole pages that is there; the caller becomes a user of them."""
        pages: list[int] = []
        name = self.root
        for start in range(0, len(tokens) - self.size + 1, self.size):
            found = self._named.get((name, tuple(tokens[start : start + self.size])))
            if found is None:
                break
            name, page = found
            pages.append(page)
        for page in pages:
            self._kept.pop(page, None)
            self._users[page] += 1
        self.hits += len(pages)
        return Prefix(pages, name)

    def allocate(self, count: int) -> list[int] | None:
        """``count`` pages for one user to write to; None, and nothing happens, when so many are not available."""
        if count > self.available:
            return None
        while len(self._free) < count:
            page, _ = self._kept.popitem(last=False)
            self._unname(page)
            self._free.append(page)
        pages = [self._free.pop() for _ in range(count)]
        self._users.update(pages)
        return pages

    def name(self, parent: int, tokens: Sequence[int], page: int) -> int:
        """Names the history ``parent`` and after it ``tokens``, a page full, which ``page`` holds or is about to.

        Returns its name. Another page may hold the same: then that one keeps the name, and this one has none.
        """
        key = (parent, tuple(tokens))
        assert len(key[1]) == self.size and self._users[page] > 0
        if key in self._named or page in self._key_of:
            return self._named[key][0]
        self._names += 1
        self._named[key], self._key_of[page] = (self._names, page), key
        return self._names

    def release(self, pages: Iterable[int]) -> None:
        """One user of each has done with it. In the order of a history: its end is given up before its start."""
        for page in reversed(list(pages)):
            self._users[page] -= 1
            assert self._users[page] >= 0, f"page {page} has no user"
            if self._users[page]:
                continue
            del self._users[page]
            if page in self._key_of:
                self._kept[page] = None
            else:
                self._free.append(page)

    def forget(self) -> None:
        """All names end: what pages hold is of no more use to anyone but those who have them."""
        self._free += self._kept
        self._kept.clear()
        self._named.clear()
        self._key_of.clear()
        self._names += 1
        self.root = self._names

    def _unname(self, page: int) -> None:
        del self._named[self._key_of.pop(page)]
