"""Requests take sampled tokens up to their end; slots are told what to process next; prefill batches share work."""

import numpy as np
import pytest

from intellect_jax.sampler.batches import prefill_batches
from intellect_jax.sampler.programs import Shapes
from intellect_jax.sampler.requests import Span
from intellect_jax.sampler.slots import SlotTable
from intellect_jax.types import Version
from tests.samplers import request

V1, V2 = Version(0, 1), Version(0, 2)
SHAPES = Shapes(
    slot_buckets=(2, 8), max_len=16, length_buckets=(4, 16), row_buckets=(1, 3), decode_steps=1, dtype="float32"
)


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


def test_prefill_leaves_out_the_last_token_and_shares_equal_histories():
    requests = {0: request([1, 2, 3]), 3: request([1, 2, 9]), 5: request([7] * 6), 6: request([4])}
    (batch,) = prefill_batches(requests, SHAPES)
    assert batch.tokens.shape == (3, 16)
    assert batch.row_of_slot.tolist() == [0, -1, -1, 0, -1, 1, -1, -1]
    assert batch.tokens[0, :3].tolist() == [1, 2, 0] and batch.tokens[1, :6].tolist() == [7] * 5 + [0]
    assert batch.lengths.tolist() == [2, 5, 0]
    assert sorted(batch.slots) == [0, 3, 5]


def test_prefill_batches_take_the_smallest_buckets_that_hold_them():
    requests = {slot: request([slot] * (3 if slot < 3 else 9)) for slot in range(4)}
    batches = list(prefill_batches(requests, SHAPES))
    assert [b.tokens.shape for b in batches] == [(3, 4), (1, 16)]


def test_prefill_covers_what_a_running_request_has_generated():
    r = request([1, 2], max_tokens=9)
    r.extend([5, 6], [-1.0, -1.0], V1)
    (batch,) = prefill_batches({2: r}, SHAPES)
    assert batch.tokens[0].tolist() == [1, 2, 5, 0] and batch.lengths[0] == 3
