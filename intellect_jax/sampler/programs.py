"""The compiled programs of the engine: prefill of histories and decoding of all slots, over one key/value cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from intellect_jax.models import transformer
from intellect_jax.models.config import ModelConfig
from intellect_jax.models.transformer import Cache, Params
from intellect_jax.sampler.sampling import sample
from intellect_jax.sampler.slots import DecodeInputs, idle_inputs


@dataclass(frozen=True)
class Shapes:
    """Everything static about the programs; lengths in tokens."""

    slot_buckets: tuple[int, ...]  # leading slots that decode together; the largest is all of them
    max_len: int
    length_buckets: tuple[int, ...]  # the largest is max_len
    row_buckets: tuple[int, ...]
    decode_steps: int
    dtype: str

    @classmethod
    def from_config(cls, sampler: ConfigDict) -> Shapes:
        """From the ``sampler`` section: programs for full use, and for a quarter of the slots and prefill rows.

        ``deterministic`` leaves one size of each: a row's bits do not depend on the other rows of a program, but they
        do differ between programs.
        """
        slots, rows = (tuple(sorted({max(n // 4, 1), n})) for n in (sampler.slots, sampler.prefill_rows))
        lengths = tuple(sampler.prefill_buckets)
        if sampler.deterministic:
            slots, rows, lengths = slots[-1:], rows[-1:], lengths[-1:]
        return cls(slots, sampler.max_len, lengths, rows, sampler.decode_steps, sampler.dtype)

    @property
    def slots(self) -> int:
        return self.slot_buckets[-1]

    def prefill_shape(self, rows: int, length: int) -> tuple[int, int]:
        """The smallest bucket that holds ``rows`` histories of at most ``length`` tokens."""
        return (
            next(b for b in self.row_buckets if b >= rows),
            next(b for b in self.length_buckets if b >= length),
        )


class Decoded(NamedTuple):
    """What ``decode_steps`` steps made of every slot (N of them)."""

    tokens: Int[Array, "n b"]
    logprobs: Float[Array, "n b"]
    routed_experts: Int[Array, "n b l k"]  # int16, of the tokens that were processed


class Programs:
    """``prefill`` and ``decode`` take the cache and give it back: the one handed in is gone (donated)."""

    def __init__(self, model: ModelConfig, shapes: Shapes):
        self.model = model
        self.shapes = shapes
        self.prefill = partial(_prefill, model, shapes.dtype)
        self.decode = partial(_decode, model, shapes)

    def new_cache(self) -> Cache:
        return transformer.init_cache(self.model, self.shapes.slots, self.shapes.max_len, jnp.dtype(self.shapes.dtype))

    def warm_up(self, params: Params, cache: Cache) -> Iterator[Cache]:
        """Compiles every program that can ever run, yielding the cache after each."""
        slots = self.shapes.slots
        for rows in self.shapes.row_buckets:
            for length in self.shapes.length_buckets:
                tokens, lengths = np.zeros((rows, length), np.int32), np.zeros(rows, np.int32)
                cache, _ = self.prefill(params, cache, tokens, lengths, np.full(slots, -1, np.int32))
                yield cache
        for count in self.shapes.slot_buckets:
            cache, decoded = self.decode(params, cache, idle_inputs(count))
            jax.block_until_ready(decoded)
            yield cache


@partial(jax.jit, static_argnames=("model", "dtype"), donate_argnames="cache")
def _prefill(
    model: ModelConfig,
    dtype: str,
    params: Params,
    cache: Cache,
    tokens: Int[Array, "r s"],
    lengths: Int[Array, " r"],
    row_of_slot: Int[Array, " b"],
) -> tuple[Cache, Int[Array, "r s l k"]]:
    """Keys and values of R histories, written to every slot that names one of the rows; -1 leaves a slot alone.

    Several slots may name one row: equal prompts are computed once. Also the experts chosen, int16.
    """
    rows, length = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(length), (rows, length))
    segment_ids = (positions < lengths[:, None]).astype(jnp.int32)
    out = transformer.forward(
        params, model, tokens, positions, segment_ids, compute_dtype=jnp.dtype(dtype), keep_kv=True
    )
    assert out.kv is not None
    named = (row_of_slot >= 0)[None, :, None, None, None]

    def write(old: Array, new: Array) -> Array:
        chosen = jnp.where(named, new[:, row_of_slot].astype(old.dtype), old[:, :, :length])
        return old.at[:, :, :length].set(chosen)

    return Cache(write(cache.k, out.kv[0]), write(cache.v, out.kv[1])), out.routed_experts


@partial(jax.jit, static_argnames=("model", "shapes"), donate_argnames="cache")
def _decode(model: ModelConfig, shapes: Shapes, params: Params, cache: Cache, inputs: DecodeInputs):
    """Processes the last token of the leading slots and samples the next, ``decode_steps`` times in a row.

    Returns the cache and Decoded; as many slots take part as ``inputs`` has rows.
    """
    count = inputs.tokens.shape[0]
    seeds, temperature, top_p = (jnp.asarray(x) for x in (inputs.seeds, inputs.temperature, inputs.top_p))

    def step(carry, _):
        cache, tokens, positions = carry
        hidden, cache, routed = transformer.decode(
            params, model, cache, tokens, positions, compute_dtype=jnp.dtype(shapes.dtype)
        )
        logits = transformer.logits(params, model, hidden)
        tokens, logprobs = sample(logits, seeds, positions + 1, temperature, top_p)
        # A slot whose request stopped within this round goes on to the end; what it makes is thrown away.
        after = jnp.minimum(positions + 1, shapes.max_len - 1)
        return (cache, tokens, after), Decoded(tokens, logprobs, routed)

    start = (Cache(*(x[:, :count] for x in cache)), inputs.tokens, inputs.positions)
    (part, _, _), decoded = jax.lax.scan(step, start, length=shapes.decode_steps)
    return Cache(*(x.at[:, :count].set(new) for x, new in zip(cache, part, strict=True))), decoded
