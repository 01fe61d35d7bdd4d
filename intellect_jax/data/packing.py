"""Packing samples into the fixed shapes that the trainer compiled: first-fit decreasing, deterministic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from intellect_jax.types import STREAMS, PackedBatch, Sample

REQUIRED_STREAMS = ("loss_mask", "advantages", "sampler_logprobs", "versions")


def pack(
    samples: list[Sample],
    step: int,
    *,
    rows: int,
    seq_buckets: Sequence[int],
    microbatch_buckets: Sequence[int],
    routed_shape: tuple[int, int] | None,
    current_version: int,
) -> PackedBatch:
    """Packs the samples of trainer step ``step`` into [M, R, S] arrays.

    R is ``rows``; S the smallest of ``seq_buckets`` (tokens, increasing) with which the batch fits, M then the smallest
    of ``microbatch_buckets`` that holds its rows. ``routed_shape`` is (MoE layers, experts per token), or None for a
    batch without routed experts. A token's staleness is ``current_version`` minus its version. The first token of a
    sample is never in the loss: nothing predicts it.

    Raises ValueError when no bucket fits, a sample's streams differ in length, or a version lies in the future.
    """
    for i, sample in enumerate(samples):
        _check(sample, i, current_version, routed_shape)
    bins, seq, microbatches = _choose_buckets([len(s.tokens) for s in samples], rows, seq_buckets, microbatch_buckets)
    flat = _padding(microbatches * rows, seq, routed_shape)
    for row, members in enumerate(bins):
        start = 0
        for segment, index in enumerate(members, start=1):
            start = _place(flat, row, start, segment, samples[index], current_version)
    arrays = {name: a.reshape(microbatches, rows, *a.shape[1:]) for name, a in flat.items()}
    return PackedBatch(step, arrays)


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of ``lengths`` grouped into rows that hold at most ``capacity`` each; equal lengths keep their order."""
    bins: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        row = next((r for r, room in enumerate(free) if room >= length), None)
        if row is None:
            row = len(bins)
            bins.append([])
            free.append(capacity)
        bins[row].append(index)
        free[row] -= length
    return bins


def _choose_buckets(
    lengths: Sequence[int], rows: int, seq_buckets: Sequence[int], microbatch_buckets: Sequence[int]
) -> tuple[list[list[int]], int, int]:
    longest = max(lengths, default=0)
    bins: list[list[int]] = []
    for seq in (s for s in seq_buckets if s >= longest):
        bins = first_fit_decreasing(lengths, seq)
        for microbatches in microbatch_buckets:
            if len(bins) <= microbatches * rows:
                return bins, seq, microbatches
    if longest > max(seq_buckets):
        raise ValueError(f"a sample of {longest} tokens does not fit the longest row, {max(seq_buckets)} tokens")
    raise ValueError(
        f"{len(lengths)} samples of {sum(lengths)} tokens need {len(bins)} rows of {max(seq_buckets)} tokens;"
        f" the largest batch has {max(microbatch_buckets)} microbatches of {rows} rows"
    )


def _check(sample: Sample, index: int, current_version: int, routed_shape: tuple[int, int] | None) -> None:
    count = len(sample.tokens)
    if count == 0:
        raise ValueError(f"sample {index} is empty")
    shapes: dict[str, tuple[tuple[int, ...], np.ndarray]] = {
        name: ((count,), getattr(sample, name)) for name in REQUIRED_STREAMS
    }
    if sample.ref_logprobs is not None:
        shapes["ref_logprobs"] = ((count,), sample.ref_logprobs)
    if routed_shape is not None and sample.routed_experts is not None:
        shapes["routed_experts"] = ((count, *routed_shape), sample.routed_experts)
    for name, (shape, stream) in shapes.items():
        if stream.shape != shape:
            raise ValueError(f"sample {index}: {name} has shape {stream.shape}, must be {shape}")
    newest = int(sample.versions.max())
    if newest > current_version:
        raise ValueError(f"sample {index} holds tokens of version {newest}; the trainer is at {current_version}")


def _padding(rows: int, seq: int, routed_shape: tuple[int, int] | None) -> dict[str, np.ndarray]:
    flat = {name: np.full((rows, seq), fill, dtype) for name, dtype, fill in STREAMS}
    if routed_shape is not None:
        flat["routed_experts"] = np.full((rows, seq, *routed_shape), -1, np.int16)
    return flat


def _place(
    flat: dict[str, np.ndarray], row: int, start: int, segment: int, sample: Sample, current_version: int
) -> int:
    """Writes one sample into ``flat`` and returns where the next may start."""
    stop = start + len(sample.tokens)
    streams = {
        "tokens": sample.tokens,
        "positions": np.arange(stop - start),
        "segment_ids": segment,
        "temperature": sample.temperature,
        "loss_id": sample.loss_id,
        "loss_mask": sample.loss_mask,
        "advantages": sample.advantages,
        "sampler_logprobs": sample.sampler_logprobs,
        "ref_logprobs": 0.0 if sample.ref_logprobs is None else sample.ref_logprobs,
        "rl_weight": sample.rl_weight,
        "ce_weight": sample.ce_weight,
        "ref_kl_weight": sample.ref_kl_weight,
        "staleness": np.where(sample.versions < 0, -1, current_version - sample.versions),
    }
    if "routed_experts" in flat:
        streams["routed_experts"] = -1 if sample.routed_experts is None else sample.routed_experts
    for name, values in streams.items():
        flat[name][row, start:stop] = values
    flat["loss_mask"][row, start] = False
    return stop
