"""Prefill plans: every token but the last is made to be there once, after whatever it reads."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from intellect_jax.sampler.batches import plan_prefill
from intellect_jax.sampler.pages import PagePool
from intellect_jax.sampler.shapes import Shapes
from intellect_jax.sampler.tables import PageTables

SHAPES = Shapes(
    slot_buckets=(2, 8),
    max_len=24,
    length_buckets=(4, 16),
    row_buckets=(1, 3),
    decode_steps=1,
    dtype="float32",
    page_size=4,
    pages=48,
    width_buckets=(2, 6),
)


def plan(histories, there=None):
    tables = np.arange(1, 1 + 8 * 6, dtype=np.int32).reshape(8, 6)
    return plan_prefill(histories, there or dict.fromkeys(histories, 0), tables, SHAPES)


def test_the_last_token_is_left_out_and_equal_histories_are_computed_once():
    (batch,), copies = plan({0: [1, 2, 3], 3: [1, 2, 9], 5: [7] * 6, 6: [4]})
    assert batch.tokens.shape == (3, 16) and batch.tables.shape == (3, 4)  # two rows, and one of five tokens
    assert batch.tokens[0, :3].tolist() == [1, 2, 0] and batch.tokens[1, :6].tolist() == [7] * 5 + [0]
    assert batch.lengths.tolist() == [2, 5, 0] and batch.starts.tolist() == [0, 0, 0]
    assert batch.tables[:2, 0].tolist() == [1, 31] and not batch.tables[2].any()
    assert copies == [(1, 19)]


def test_batches_take_the_smallest_programs_that_hold_them():
    batches, _ = plan({slot: [slot] * (3 if slot < 3 else 5) for slot in range(4)})
    assert [(*b.tokens.shape, b.tables.shape[1]) for b in batches] == [(3, 4, 1), (1, 4, 1)]


def test_a_part_that_starts_late_sees_the_pages_before_it():
    (batch,), _ = plan({2: list(range(15))}, {2: 12})
    assert batch.tokens.tolist() == [[12, 13, 0, 0]] and batch.starts.tolist() == [12]
    assert batch.tables[0].tolist() == [13, 14, 15, 16, 17, 18]


def test_long_histories_take_several_parts_in_order():
    (batch,), _ = plan({0: list(range(21))})
    assert batch.starts.tolist()[:2] == [0, 16] and batch.lengths.tolist()[:2] == [16, 4]


HISTORIES = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=24), min_size=1, max_size=8)


def run(batches, copies):
    """What each page holds after the plan: its tokens, None where nothing was written; fails where a part comes before
    what it reads."""
    held = {}
    for batch in batches:
        for tokens, start, length, table in zip(*batch, strict=True):
            for i in range(length):
                at = start + i
                held[table[at // 4], at % 4] = (at, tokens[i])
        for start, length, table in zip(batch.starts, batch.lengths, batch.tables, strict=True):
            assert all((table[at // 4], at % 4) in held for at in range(start + length))
    for source, target in copies:
        held |= {(target, offset): held[source, offset] for offset in range(4) if (source, offset) in held}
    return held


@settings(deadline=None)
@given(HISTORIES, st.booleans())
def test_afterwards_every_slots_pages_hold_its_history(histories, reuse):
    tables = PageTables(8, 6, PagePool(48, 4, reuse))
    there = {slot: tables.join(slot, history, len(history)) for slot, history in enumerate(histories)}
    held = run(*plan_prefill(dict(enumerate(histories)), there, tables.tables, SHAPES))
    for slot, history in enumerate(histories):
        for at, token in enumerate(history[:-1]):
            assert held[tables.tables[slot, at // 4], at % 4] == (at, token)
