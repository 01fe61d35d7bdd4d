import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intellect_jax.data.packing import first_fit_decreasing, pack
from intellect_jax.types import STREAMS, Sample

SHAPES = {"rows": 2, "seq_buckets": (8, 16), "microbatch_buckets": (1, 3)}


def make_sample(length: int, seed: int = 0, **scalars) -> Sample:
    rng = np.random.default_rng(seed)
    versions = rng.integers(-1, 6, length)
    return Sample(
        tokens=rng.integers(1, 100, length).astype(np.int32),
        loss_mask=rng.random(length) < 0.7,
        advantages=rng.normal(size=length).astype(np.float32),
        sampler_logprobs=-rng.random(length).astype(np.float32),
        versions=versions.astype(np.int32),
        ref_logprobs=-rng.random(length).astype(np.float32),
        routed_experts=rng.integers(0, 16, (length, 3, 2)).astype(np.int16),
        **scalars,
    )


def pack_small(samples, **changes):
    arguments = {"step": 7, "routed_shape": None, "current_version": 6} | SHAPES | changes
    return pack(samples, **arguments)


def unpack(batch):
    """Every segment of a batch as {stream: values}, in row order."""
    found = []
    for m, r in np.ndindex(batch.shape[:2]):
        ids = batch.arrays["segment_ids"][m, r]
        for segment in range(1, ids.max() + 1):
            at = np.flatnonzero(ids == segment)
            assert at.size and (np.diff(at) == 1).all(), "a segment is contiguous"
            found.append({name: a[m, r, at] for name, a in batch.arrays.items()})
    return found


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 16), min_size=1, max_size=12))
def test_every_sample_comes_back_exactly_once(lengths):
    samples = [
        make_sample(n, seed=i, temperature=0.5 + i, loss_id=i % 2, rl_weight=i / 8, ce_weight=1.0, ref_kl_weight=0.25)
        for i, n in enumerate(lengths)
    ]
    batch = pack_small(samples, routed_shape=(3, 2), microbatch_buckets=(1, 6))
    found = sorted(unpack(batch), key=lambda s: s["temperature"][0])
    assert len(found) == len(samples)
    for sample, got in zip(samples, found, strict=True):
        expected_mask = sample.loss_mask.copy()
        expected_mask[0] = False
        np.testing.assert_array_equal(got["loss_mask"], expected_mask)
        np.testing.assert_array_equal(got["positions"], np.arange(len(sample.tokens)))
        for name in ("tokens", "advantages", "sampler_logprobs", "ref_logprobs", "routed_experts"):
            np.testing.assert_array_equal(got[name], getattr(sample, name))
        for name in ("temperature", "loss_id", "rl_weight", "ce_weight", "ref_kl_weight"):
            np.testing.assert_array_equal(got[name], np.float32(getattr(sample, name)))
        stale = [-1 if v < 0 else 6 - v for v in sample.versions]
        np.testing.assert_array_equal(got["staleness"], stale)


def test_padding_has_the_declared_values_and_dtypes():
    batch = pack_small([make_sample(3)], routed_shape=(3, 2))
    assert batch.shape == (1, 2, 8) and batch.step == 7
    for name, dtype, fill in STREAMS:
        assert batch.arrays[name].dtype == dtype
        assert (batch.arrays[name][0, 0, 3:] == fill).all() and (batch.arrays[name][0, 1] == fill).all()
    assert batch.arrays["routed_experts"].dtype == np.int16
    assert batch.arrays["routed_experts"].shape == (1, 2, 8, 3, 2)
    assert (batch.arrays["routed_experts"][0, 0, 3:] == -1).all()


def test_smallest_buckets_that_fit():
    assert pack_small([make_sample(8)] * 2).shape == (1, 2, 8)
    assert pack_small([make_sample(8)] * 3).shape == (3, 2, 8)  # more microbatches before longer rows
    assert pack_small([make_sample(8)] * 7).shape == (3, 2, 16)
    assert pack_small([make_sample(9)]).shape == (1, 2, 16)


def test_empty_microbatches_come_last():
    batch = pack_small([make_sample(8)] * 3)
    assert [bool(batch.arrays["segment_ids"][m].any()) for m in range(3)] == [True, True, False]


def test_unknown_routes_and_no_routes():
    sample = make_sample(4)
    sample.routed_experts = None
    assert (pack_small([sample], routed_shape=(3, 2)).arrays["routed_experts"] == -1).all()
    assert "routed_experts" not in pack_small([make_sample(4)]).arrays


def test_first_fit_decreasing():
    assert first_fit_decreasing([3, 5, 2, 5, 1], capacity=6) == [[1, 4], [3], [0, 2]]


def test_same_samples_same_batch():
    samples = [make_sample(1 + i % 7, seed=i) for i in range(12)]
    first, second = pack_small(samples), pack_small(samples)
    for name in first.arrays:
        np.testing.assert_array_equal(first.arrays[name], second.arrays[name])


def test_refusals_give_numbers():
    with pytest.raises(ValueError, match="a sample of 17 tokens does not fit the longest row, 16 tokens"):
        pack_small([make_sample(17)])
    with pytest.raises(ValueError, match=r"7 samples of 112 tokens need 7 rows of 16 .* 3 microbatches of 2 rows"):
        pack_small([make_sample(16)] * 7)
    with pytest.raises(ValueError, match="sample 1 holds tokens of version 5; the trainer is at 4"):
        pack_small([make_sample(1), make_sample(40, seed=1)], current_version=4, seq_buckets=(64,))
    with pytest.raises(ValueError, match="sample 0 is empty"):
        pack_small([make_sample(0)])


@pytest.mark.parametrize("name", ["loss_mask", "advantages", "versions", "ref_logprobs", "routed_experts"])
def test_refuses_streams_of_another_length(name):
    sample = make_sample(5)
    setattr(sample, name, getattr(sample, name)[:4])
    with pytest.raises(ValueError, match=f"sample 0: {name} has shape"):
        pack_small([sample], routed_shape=(3, 2))


def test_does_not_import_jax():
    code = "import sys, intellect_jax.data.packing; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
