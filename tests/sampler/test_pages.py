"""The allocator of cache pages: whatever is done in whatever order, nobody's page is written to by another."""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from intellect_jax.sampler.pages import NOWHERE, PagePool
from intellect_jax.sampler.tables import PageTables

SLOTS, WIDTH, COUNT, SIZE = 5, 4, 9, 2


class Requests(RuleBasedStateMachine):
    """Requests join, grow, fill pages and leave; weights change. ``content`` is what the device would hold."""

    def __init__(self):
        super().__init__()
        self.pool = PagePool(COUNT, SIZE)
        self.tables = PageTables(SLOTS, WIDTH, self.pool)
        self.histories: dict[int, list[int]] = {}
        self.content: dict[int, list] = {page: [None] * SIZE for page in range(COUNT + 1)}
        self.epoch = 0
        self.epochs: dict[int, set[int]] = {}

    def write(self, slot, at, token):
        page = int(self.tables.tables[slot, at // SIZE])
        assert page != NOWHERE
        users = sum(page in row for row in self.tables.tables.tolist())
        same = self.content[page][at % SIZE] == (self.epoch, tuple(self.histories[slot][: at + 1]))
        assert users == 1 or same, "wrote to what others read"
        self.content[page][at % SIZE] = (self.epoch, tuple(self.histories[slot][: at + 1]))

    @rule(history=st.lists(st.integers(0, 1), min_size=1, max_size=WIDTH * SIZE - 1))
    def join(self, history):
        free = [slot for slot in range(SLOTS) if slot not in self.histories]
        before = self.pool.available
        if not free:
            return
        there = self.tables.join(free[0], history, len(history))
        if there is None:
            assert self.pool.available == before and not self.tables.tables[free[0]].any()
            return
        self.histories[free[0]] = history
        assert there <= len(history) - 1
        for at in range(there):  # what is said to be there is, of this version
            page = int(self.tables.tables[free[0], at // SIZE])
            assert self.content[page][at % SIZE] == (self.epoch, tuple(history[: at + 1]))
        for at in range(there, len(history) - 1):
            self.write(free[0], at, history[at])

    @precondition(lambda self: self.histories)
    @rule(data=st.data(), token=st.integers(0, 1))
    def decode(self, data, token):
        slot = data.draw(st.sampled_from(sorted(self.histories)))
        history = self.histories[slot]
        if len(history) == WIDTH * SIZE or not self.tables.grow(slot, len(history)):
            return
        self.write(slot, len(history) - 1, history[-1])
        history.append(token)
        self.tables.filled(slot, history)

    @precondition(lambda self: self.histories)
    @rule(data=st.data())
    def leave(self, data):
        slot = data.draw(st.sampled_from(sorted(self.histories)))
        self.tables.leave(slot)
        del self.histories[slot]

    @rule()
    def update_and_compute_again(self):
        for slot in self.histories:
            self.tables.leave(slot)
        self.tables.forget()
        self.epoch += 1
        for slot, history in self.histories.items():
            there = self.tables.join(slot, history, len(history) - 1)
            assert there is not None, "the same histories no longer fit"
            for at in range(there, len(history) - 1):
                self.write(slot, at, history[at])

    @rule()
    def update_and_keep(self):
        self.tables.forget()
        self.epoch += 1
        for slot, history in self.histories.items():  # their own goes on, now of two versions
            assert self.tables._holdings[slot].name is None, history

    @invariant()
    def every_page_is_free_in_use_or_kept(self):
        rows = {slot: [page for page in self.tables.tables[slot].tolist() if page] for slot in self.histories}
        users = Counter(page for row in rows.values() for page in row)
        assert users == self.pool._users
        assert all(len(row) == len(set(row)) for row in rows.values())
        states = [*self.pool._free, *self.pool._users, *self.pool._kept]
        assert sorted(states) == list(range(1, COUNT + 1))
        assert self.pool.available == COUNT - len(users)
        named = set(self.pool._key_of)
        assert all(count == 1 or page in named for page, count in users.items() if self.epoch == 0)
        assert set(self.pool._kept) <= named and not named & set(self.pool._free)

    @invariant()
    def the_rows_of_others_are_empty(self):
        for slot in range(SLOTS):
            assert slot in self.histories or not self.tables.tables[slot].any()


Requests.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestRequests = Requests.TestCase


def test_what_nobody_uses_is_given_up_from_its_end_and_the_oldest_first():
    pool = PagePool(4, 2)
    for tokens in ([1, 1, 2, 2], [3, 3, 4, 4]):
        pages, name = pool.allocate(2), pool.root
        for page, start in zip(pages, (0, 2), strict=True):
            name = pool.name(name, tokens[start : start + 2], page)
        pool.release(pages)
    assert pool.available == 4 and pool.used == 0
    pool.allocate(1)
    assert len(pool.take_prefix([1, 1, 2, 2]).pages) == 1
    assert len(pool.take_prefix([3, 3, 4, 4]).pages) == 2


def test_without_reuse_nothing_is_shared():
    tables = PageTables(2, 2, PagePool(4, 2, reuse=False))
    assert tables.join(0, [1, 2, 3], 3) == tables.join(1, [1, 2, 3], 3) == 0
    assert not set(tables.tables[0]) & set(tables.tables[1])


def test_only_whole_pages_before_the_last_token_are_shared():
    tables = PageTables(4, 3, PagePool(12, 2))
    tables.join(0, [1, 2, 3, 4, 5], 5)
    assert tables.join(1, [1, 2, 3, 4], 5) == 2  # the fourth is yet to be processed
    assert tables.join(2, [1, 2, 3, 4, 5], 5) == 4
    assert tables.join(3, [1, 3, 3, 4, 5], 5) == 0


def test_too_many_pages_are_refused_whole():
    pool = PagePool(3, 2)
    assert pool.allocate(4) is None and pool.available == 3
    with pytest.raises(AssertionError):
        pool.release([1])
