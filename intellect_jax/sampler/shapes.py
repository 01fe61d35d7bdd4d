"""Everything static about the engine's programs."""

from __future__ import annotations

from dataclasses import dataclass

from ml_collections import ConfigDict

_LONG = 512  # tokens of a history, from which on looking at fewer pages saves more than compiling for it takes


@dataclass(frozen=True)
class Shapes:
    """Lengths in tokens, widths in pages."""

    slot_buckets: tuple[int, ...]  # leading slots that decode together; the largest is all of them
    max_len: int
    length_buckets: tuple[int, ...]  # of what is prefilled in one go
    row_buckets: tuple[int, ...]
    decode_steps: int
    dtype: str
    page_size: int
    pages: int  # that requests can have, all together
    width_buckets: tuple[int, ...]  # pages that decoding looks at; the largest is ``width``
    prefix_reuse: bool = True

    @classmethod
    def from_config(cls, sampler: ConfigDict) -> Shapes:
        """From the ``sampler`` section: programs for full use, and for a quarter of the slots and prefill rows; for a
        quarter of the pages, too, where histories are long.

        ``deterministic`` leaves one size of each, and nothing is reused: a row's bits do not depend on the other rows
        of a program, but they do differ between programs.
        """
        width = -(-sampler.max_len // sampler.page_size)
        slots, rows, widths = (_full_and_quarter(n) for n in (sampler.slots, sampler.prefill_rows, width))
        if sampler.max_len < _LONG:
            widths = (width,)
        lengths = tuple(sampler.prefill_buckets)
        if sampler.deterministic:
            slots, rows, lengths, widths = slots[-1:], rows[-1:], lengths[-1:], widths[-1:]
        return cls(
            slot_buckets=slots,
            max_len=sampler.max_len,
            length_buckets=lengths,
            row_buckets=rows,
            decode_steps=sampler.decode_steps,
            dtype=sampler.dtype,
            page_size=sampler.page_size,
            pages=sampler.pages or sampler.slots * width,
            width_buckets=widths,
            prefix_reuse=sampler.prefix_reuse and not sampler.deterministic,
        )

    @property
    def slots(self) -> int:
        return self.slot_buckets[-1]

    @property
    def width(self) -> int:
        """Pages of the longest history."""
        return self.width_buckets[-1]

    def prefill_shape(self, rows: int, length: int, end: int) -> tuple[int, int, int]:
        """Rows, tokens and pages of the smallest program for ``rows`` parts of at most ``length`` tokens, of histories
        of which at most ``end`` are there afterwards."""
        tokens = next(b for b in self.length_buckets if b >= length)
        width = next(w for w in self.prefill_widths(tokens) if w * self.page_size >= end)
        return next(b for b in self.row_buckets if b >= rows), tokens, width

    def prefill_widths(self, length: int) -> tuple[int, ...]:
        """Pages that prefilling ``length`` tokens looks at: those of a history that fits whole, or all."""
        whole = min(-(-length // self.page_size), self.width)
        return tuple(sorted({whole, self.width})) if len(self.width_buckets) > 1 else (self.width,)

    def decode_width(self, length: int) -> int:
        """Pages that hold ``length`` tokens."""
        return next(w for w in self.width_buckets if w * self.page_size >= length)


def _full_and_quarter(count: int) -> tuple[int, ...]:
    return tuple(sorted({max(count // 4, 1), count}))
