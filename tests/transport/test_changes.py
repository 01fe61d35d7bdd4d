"""Coded changes give back the new array bit for bit, and are as small as they ought to be."""

from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intellect_jax.transport import changes

BF16 = np.dtype(ml_dtypes.bfloat16)


def round_trip(old, new):
    coded = changes.encode(changes.find(old, new))
    moves, back, parts = changes.decode(coded, old.dtype, old.size), old.copy(), old.copy()
    moves.apply(back)
    ends = [0, old.size // 3, old.size // 2, old.size]
    for (start, stop), part in zip(pairwise(ends), moves.split(np.array(ends)), strict=True):
        part.apply(parts[start:stop])
    assert back.tobytes() == new.tobytes() == parts.tobytes()
    return coded


@settings(deadline=None, max_examples=200)
@given(data=st.data(), dtype=st.sampled_from([BF16, np.dtype(np.float32)]), size=st.integers(0, 3000))
def test_any_change_comes_back(data, dtype, size):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    bits = changes._BITS[dtype.itemsize]
    old = rng.integers(0, np.iinfo(bits).max, size, dtype=bits)
    new = old.copy()
    moved = rng.random(size) < data.draw(st.sampled_from([0.0, 0.001, 0.05, 1.0]))
    steps = rng.integers(-300, 300, size).astype(np.int64)  # near ones, far ones, none at all, over the ends
    new[moved] = (old[moved].astype(np.int64) + steps[moved]).astype(bits)
    round_trip(old.view(dtype), new.view(dtype))


def test_special_numbers_are_bit_patterns_like_others():
    old = np.array([0.0, np.nan, np.inf, 1.0, -1.0], BF16)
    new = np.array([-0.0, 2.0, -np.inf, np.nan, -1.0], BF16)
    round_trip(old, new)
    assert changes.find(old, new).where.tolist() == [0, 1, 2, 3]  # NaN is equal to itself here, 0 is not -0


@pytest.mark.parametrize(("scale", "most"), [(1e-6, 0.022), (3e-6, 0.05)])
def test_the_bytes_of_a_step_at_rl_rates(scale, most):
    rng = np.random.default_rng(0)
    master = rng.normal(scale=0.02, size=1 << 20).astype(np.float32)
    moved = master + scale * np.sign(rng.normal(size=master.size)).astype(np.float32)
    old, new = master.astype(BF16), moved.astype(BF16)
    coded = round_trip(old, new)
    share = np.mean(old.view("u2") != new.view("u2"))
    print(f"{share:.3%} of the elements, {len(coded) / old.nbytes:.3%} of the bytes")
    assert len(coded) <= most * old.nbytes


def test_what_was_cut_or_is_of_another_array_is_an_error():
    rng = np.random.default_rng(1)
    old = rng.normal(size=4000).astype(BF16)
    new = old.copy()
    new[::37] = (new[::37].view("u2") + 1).view(BF16)
    coded = changes.encode(changes.find(old, new))
    for cut in (0, 8, 39, len(coded) // 2, len(coded) - 1):
        with pytest.raises(ValueError):
            changes.decode(coded[:cut], BF16, old.size)
    with pytest.raises(ValueError):
        changes.decode(coded, BF16, 100)
