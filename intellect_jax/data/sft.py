"""Supervised batches: records through grain, rendered as chat, packed into the trainer's largest rows."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from ml_collections import ConfigDict

from intellect_jax.data.records import open_source, render_record
from intellect_jax.errors import UserError
from intellect_jax.types import STREAMS, PackedBatch

# Stream of a batch -> what grain's packing calls it.
PACKED = {
    "tokens": "tokens",
    "positions": "tokens_positions",
    "segment_ids": "tokens_segment_ids",
    "loss_mask": "loss_mask",
}


def sft_batches(
    config: ConfigDict, tokenizer: Any, *, seed: int, start_step: int = 0, part: int = 0, parts: int = 1
) -> Iterator[PackedBatch]:
    """Batches ``start_step + 1``, … without end, the same for the same ``seed`` however often it is resumed.

    Of each only rows ``part``, ``part`` + ``parts``, … of every microbatch. All parts read and pack the same records.

    Every epoch of ``config.sft.data`` has its own order. A batch fills ``sft.microbatches`` times ``trainer.rows`` rows
    of the largest seq bucket, and has empty microbatches up to the next bucket; it ends at the first record that fits
    into none of its rows, which opens the next. A record is several samples, one after the other, where the chat
    template rewrites earlier turns. Loss on the assistant's tokens only, as cross-entropy: ``ce_weight`` is 1 on every
    record's tokens.

    Raises UserError at once when there is no such source, and at the batch with a record that is malformed or longer
    than a row, naming the file and the line.
    """
    trainer = config.trainer
    filled = config.sft.microbatches
    bucket = next(m for m in trainer.microbatch_buckets if m >= filled)
    shape = (bucket, trainer.rows, max(trainer.seq_buckets))
    packed = _pipeline(config.sft.data, tokenizer, seed, rows=filled * shape[1], seq=shape[2])
    numbered = enumerate(packed, start=1)
    return (_to_batch(step, arrays, shape, part, parts) for step, arrays in numbered if step > start_step)


class _Branches(grain.experimental.FlatMapTransform):
    max_fan_out = sys.maxsize  # as many as a conversation has turns

    def flat_map(self, element: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        return element


def _pipeline(data: str, tokenizer: Any, seed: int, *, rows: int, seq: int) -> grain.IterDataset:
    def render(located: tuple[str, Any]) -> list[dict[str, np.ndarray]]:
        where, record = located
        samples = []
        for tokens, mask in render_record(tokenizer, where, record):
            if len(tokens) > seq:
                raise UserError(f"{where}: {len(tokens)} tokens exceed the longest row of trainer.seq_buckets, {seq}")
            mask[0] = False  # nothing predicts the first token
            samples.append({"tokens": tokens, "loss_mask": mask})
        return samples

    records = grain.MapDataset.source(open_source(data)).seed(seed).shuffle().repeat()
    # Few threads: rendering is Python, and the trainer's own thread needs the interpreter too.
    rendered = records.map(render).to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=256))
    samples = grain.experimental.FlatMapIterDataset(rendered, _Branches())
    packed = grain.experimental.FirstFitPackIterDataset(
        samples, length_struct={"tokens": seq, "loss_mask": seq}, num_packing_bins=rows, shuffle_bins=False
    )
    return grain.experimental.ThreadPrefetchIterDataset(packed.batch(rows), prefetch_buffer_size=2)


def _to_batch(
    step: int, packed: dict[str, np.ndarray], shape: tuple[int, int, int], part: int, parts: int
) -> PackedBatch:
    microbatches, rows_in_all, seq = shape
    arrays = {name: np.full((microbatches, rows_in_all // parts, seq), fill, dtype) for name, dtype, fill in STREAMS}
    for name, source in PACKED.items():
        rows = packed[source].reshape(-1, rows_in_all, seq)[:, part::parts]
        arrays[name][: len(rows)] = rows
    arrays["ce_weight"][:] = arrays["segment_ids"] > 0
    return PackedBatch(step, arrays)
