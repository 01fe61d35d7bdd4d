"""Requests take sampled tokens up to their end; slots are told what to process next."""

import numpy as np
import pytest

from intellect_jax.sampler.requests import Span
from intellect_jax.sampler.slots import SlotTable
from intellect_jax.types import Version
from tests.samplers import request

V1, V2 = Version(0, 1), Version(0, 2)


def test_tokens_after_a_stop_token_are_thrown_away():
    r = request([1, 2], max_tokens=10, stop_token_ids=frozenset({9}))
    assert r.extend([5, 9, 7], [-0.1, -0.2, -0.3], V1) == 2
    assert (r.token_ids, r.logprobs, r.finish_reason) == ([5, 9], [-0.1, -0.2], "stop")


def test_tokens_beyond_the_budget_are_thrown_away():
    r = request([1], max_tokens=3)
    r.extend([5, 6], [-1.0, -1.0], V1)
    assert r.finish_reason == ""
    assert r.extend([7, 8], [-1.0, -1.0], V1) == 1
    assert (r.token_ids, r.finish_reason) == ([5, 6, 7], "length")


def test_a_stop_token_that_is_the_last_of_the_budget_counts_as_stop():
    r = request([1], max_tokens=1, stop_token_ids=frozenset({5}))
    r.extend([5], [-1.0], V1)
    assert r.finish_reason == "stop"


def test_spans_name_the_version_of_every_token_and_grow_within_one():
    r = request([1], max_tokens=9)
    for version in (V1, V1, V2):
        r.extend([3, 4], [-1.0, -1.0], version)
    assert r.spans == [Span(V1, 0, 4), Span(V2, 4, 6)]


def test_a_stream_gets_exactly_what_was_taken():
    r, chunks = request([1], max_tokens=3), []
    r.on_chunk = chunks.append
    r.extend([3, 4], [-1.0, -2.0], V1)
    r.extend([5, 6], [-3.0, -4.0], V2)
    assert [(c.token_ids, c.logprobs, c.version, c.start, c.finish_reason) for c in chunks] == [
        ([3, 4], [-1.0, -2.0], V1, 0, ""),
        ([5], [-3.0], V2, 2, "length"),
    ]


def test_a_slot_points_at_the_last_unprocessed_token():
    table = SlotTable(2)
    slot = table.join(request([4, 5, 6], seed=(3 << 32) + 7, temperature=0.5, top_p=0.9))
    inputs = table.inputs
    assert (inputs.tokens[slot], inputs.positions[slot]) == (6, 2)
    assert inputs.seeds[slot].tolist() == [3, 7]
    assert (inputs.temperature[slot], inputs.top_p[slot]) == (0.5, np.float32(0.9))
    table.advance(slot, [8], [-1.0], V1)
    assert (inputs.tokens[slot], inputs.positions[slot]) == (8, 3)


def test_slots_are_reused_lowest_first_and_cleared():
    table = SlotTable(3)
    first, second = table.join(request([1], seed=5, temperature=0.7)), table.join(request([2]))
    table.leave(first)
    assert all(np.all(values[first] == idle) for values, idle in zip(table.inputs, (0, 0, 0, 0, 1), strict=True))
    assert table.join(request([3])) == first == 0
    assert second == 1 and table.free == 1
    table.join(request([4]))
    with pytest.raises(IndexError):
        table.join(request([5]))


def test_few_requests_decode_in_the_smallest_program_that_holds_them():
    table = SlotTable(8)
    for token in (11, 12, 13):
        table.join(request([token]))
    assert table.leading_inputs((2, 8)).tokens.tolist() == [11, 12, 13, 0, 0, 0, 0, 0]
    table.leave(2)
    assert table.leading_inputs((2, 8)).tokens.tolist() == [11, 12]
