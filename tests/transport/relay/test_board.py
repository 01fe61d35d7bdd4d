"""Who gets what from whom: the rules alone, with a clock of the test's own."""

import numpy as np
import pytest

from intellect_jax.transport.relay import board as module
from intellect_jax.transport.relay.board import ORIGIN, Ask, Board, bits, to_text

CHUNKS = 20


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Reader:
    def __init__(self, board, url):
        self.board, self.url = board, url
        self.have, self.busy, self.lost = np.zeros(CHUNKS, bool), np.zeros(CHUNKS, bool), set()

    def ask(self, most=4):
        jobs = self.board.work(Ask(self.url, self.have.copy(), self.busy.copy(), frozenset(self.lost)), most)
        self.busy[[job.chunk for job in jobs]] = True
        return jobs

    def got(self, jobs):
        for job in jobs:
            self.have[job.chunk], self.busy[job.chunk] = True, False


@pytest.fixture(autouse=True)
def many_at_once(monkeypatch):
    monkeypatch.setattr(module, "GRANTED", CHUNKS)


def make(count=2):
    clock = Clock()
    board = Board(CHUNKS, 5.0, clock)
    return clock, [Reader(board, f"http://r{i}:1") for i in range(count)]


def test_each_chunk_is_granted_once_and_then_passed_on():
    _, readers = make(8)
    granted = []
    for _ in range(200):
        for reader in readers:
            jobs = reader.ask()
            granted += [job.chunk for job in jobs if job.source == ORIGIN]
            reader.got(jobs)
    assert sorted(granted) == list(range(CHUNKS))
    assert all(reader.have.all() for reader in readers)


def test_nobody_gets_what_is_on_its_way_to_another_until_that_one_is_late():
    clock, (first, second) = make()
    taken = first.ask(CHUNKS)
    assert len(taken) == CHUNKS and second.ask() == []
    clock.now += 4.9
    assert second.ask() == []
    clock.now += 0.2
    assert {job.source for job in second.ask()} == {ORIGIN}


def test_a_relay_that_failed_the_asker_is_not_named_to_it_again():
    _, (first, second, third, fourth) = make(4)
    first.got(first.ask(CHUNKS))
    first.ask()  # says what came
    assert {job.source for job in second.ask()} == {first.url}
    second.lost.add(first.url)
    second.busy[:] = False
    third.lost.add(first.url)
    mine = second.ask()
    assert {job.source for job in mine} == {ORIGIN}
    assert not {job.chunk for job in mine} & {
        job.chunk for job in third.ask()
    }  # it is on its way to one that passes it on
    assert {job.source for job in fourth.ask()} == {first.url}


def test_what_a_reader_lost_itself_it_is_granted_again_at_once():
    _, (one, other) = make()
    jobs = one.ask()
    one.busy[:] = False
    assert [job.chunk for job in one.ask()] == [job.chunk for job in jobs]
    assert not {job.chunk for job in other.ask()} & {job.chunk for job in jobs}


def test_of_two_relays_the_one_with_fewer_complaints_is_named():
    _, (bad, good, complaining, asking) = make(4)
    bad.got(bad.ask(CHUNKS))
    bad.ask()
    good.have[:] = True
    good.ask()
    complaining.lost.add(bad.url)
    complaining.ask()
    assert {job.source for job in asking.ask(CHUNKS)} == {good.url}


def test_who_passes_nothing_on_keeps_nobody_waiting():
    _, (silent, other) = make()
    silent.url = ""
    assert len(silent.ask(CHUNKS)) == CHUNKS
    assert len(other.ask()) == 4
    silent.got(silent.ask(CHUNKS))
    assert {job.source for job in other.ask()} == {ORIGIN}


def test_the_origin_sends_only_so_many_chunks_at_once(monkeypatch):
    monkeypatch.setattr(module, "GRANTS", 6)
    clock, readers = make(5)
    taken = [reader.ask() for reader in readers]
    assert [len(jobs) for jobs in taken] == [4, 4, 0, 0, 0]
    clock.now += 5.1  # the late ones hold up nobody
    assert len(readers[2].ask()) == 4


def test_what_the_origin_sends_is_spread_over_readers(monkeypatch):
    monkeypatch.setattr(module, "GRANTED", 2)
    _, readers = make(3)
    assert [[job.chunk for job in reader.ask(8)] for reader in readers] == [[0, 1], [2, 3], [4, 5]]


def test_flags_travel_as_text():
    flags = np.random.default_rng(0).random(21) < 0.5
    np.testing.assert_array_equal(bits(to_text(flags), 21), flags)
