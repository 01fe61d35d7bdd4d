"""The compiled programs of the engine: prefill of histories and decoding of all slots, over one paged cache."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from intellect_jax.models import paged, transformer
from intellect_jax.models.config import ModelConfig
from intellect_jax.models.paged import Cache, Rows
from intellect_jax.models.transformer import Params
from intellect_jax.sampler.batches import PrefillBatch, empty_batch
from intellect_jax.sampler.sampling import sample
from intellect_jax.sampler.shapes import Shapes
from intellect_jax.sampler.slots import DecodeInputs, idle_inputs

COPIES = 64  # pages that one call copies


class Decoded(NamedTuple):
    """What ``decode_steps`` steps made of every slot (N of them)."""

    tokens: Int[Array, "n b"]
    logprobs: Float[Array, "n b"]


class Programs:
    """``prefill``, ``decode`` and ``copy`` take the cache and give it back: the one handed in is gone (donated).

    Parameters are those that ``prepare`` made of the policy's tree.
    """

    def __init__(self, model: ModelConfig, shapes: Shapes, platform: str = ""):
        """``platform``: what they are compiled for; empty: what JAX runs on."""
        self.model = model
        self.shapes = shapes
        platform = platform or jax.default_backend()
        self.prepare = partial(_apart, model) if platform == "cpu" else lambda params: params
        kernel = platform == "tpu"
        self.prefill = partial(_prefill, model, shapes.dtype)
        self.decode = partial(_decode, model, shapes, kernel)
        self.routes = _routes

    def new_cache(self) -> Cache:
        shapes = self.shapes
        return paged.init_cache(self.model, shapes.pages + 1, shapes.page_size, jnp.dtype(shapes.dtype))

    def copy(self, cache: Cache, pages: list[tuple[int, int]]) -> Cache:
        """Copies pages (source, target); no target is a source, too."""
        for first in range(0, len(pages), COPIES):
            part = np.zeros((COPIES, 2), np.int32)
            part[: len(pages[first : first + COPIES])] = pages[first : first + COPIES]
            cache = _copy(cache, *part.T)
        return cache

    def warm_up(self, params: Params, cache: Cache) -> Iterator[Cache]:
        """Compiles every program that can ever run, yielding the cache after each."""
        shapes = self.shapes
        params = self.prepare(params)
        for rows in shapes.row_buckets:
            for length in shapes.length_buckets:
                for width in shapes.prefill_widths(length):
                    cache = self.prefill(params, cache, empty_batch(rows, length, width))
                    yield cache
        for count in shapes.slot_buckets:
            for width in shapes.width_buckets:
                tables = np.zeros((count, width), np.int32)
                cache, decoded = self.decode(params, cache, idle_inputs(count), tables)
                jax.block_until_ready(decoded)
                yield cache
        cache = self.copy(cache, [(0, 0)])
        jax.block_until_ready(self.routes(cache, np.zeros(shapes.width, np.int32)))
        yield cache


@partial(jax.jit, static_argnames="model")
def _apart(model: ModelConfig, params: Params) -> Params:
    return paged.apart(params, model)


@partial(jax.jit, static_argnames=("model", "dtype"), donate_argnames="cache")
def _prefill(model: ModelConfig, dtype: str, params: Params, cache: Cache, batch: PrefillBatch) -> Cache:
    """Keys, values and experts of R parts of histories, whose earlier parts are there or in the same batch."""
    steps = jnp.arange(batch.tokens.shape[1])
    positions = jnp.asarray(batch.starts)[:, None] + steps
    real = steps < jnp.asarray(batch.lengths)[:, None]
    rows = Rows(jnp.asarray(batch.tokens), positions, real, jnp.asarray(batch.tables))
    return paged.extend(params, model, cache, rows, compute_dtype=jnp.dtype(dtype))[1]


@partial(jax.jit, static_argnames=("model", "shapes", "kernel"), donate_argnames="cache")
def _decode(
    model: ModelConfig,
    shapes: Shapes,
    kernel: bool,
    params: Params,
    cache: Cache,
    inputs: DecodeInputs,
    tables: Int[Array, "b n"],
) -> tuple[Cache, Decoded]:
    """Processes the last token of the leading slots and samples the next, ``decode_steps`` times in a row."""
    seeds, temperature, top_p = (jnp.asarray(x) for x in (inputs.seeds, inputs.temperature, inputs.top_p))
    tables, dtype = jnp.asarray(tables), jnp.dtype(shapes.dtype)

    def step(carry, _):
        cache, tokens, positions = carry
        rows = Rows(tokens[:, None], positions[:, None], jnp.ones_like(positions, bool)[:, None], tables)
        hidden, cache = paged.extend(params, model, cache, rows, compute_dtype=dtype, kernel=kernel)
        logits = transformer.logits(params, model, hidden[:, 0])
        tokens, logprobs = sample(logits, seeds, positions + 1, temperature, top_p)
        # A slot whose request stopped within this round goes on to the end; what it makes is thrown away, and lies in
        # no page that others read: those were full before.
        after = jnp.minimum(positions + 1, shapes.max_len - 1)
        return (cache, tokens, after), Decoded(tokens, logprobs)

    start = (cache, jnp.asarray(inputs.tokens), jnp.asarray(inputs.positions))
    (cache, _, _), decoded = jax.lax.scan(step, start, length=shapes.decode_steps)
    return cache, decoded


@partial(jax.jit, donate_argnames="cache")
def _copy(cache: Cache, sources: Int[Array, " i"], targets: Int[Array, " i"]) -> Cache:
    return paged.copy_pages(cache, sources, targets)


@jax.jit
def _routes(cache: Cache, table: Int[Array, " n"]) -> Int[Array, "t l e"]:
    """Experts of the tokens in a table's pages, int16."""
    return jax.lax.collapse(cache.routed[table], 0, 2)  # of a dense policy it is empty, and -1 would fit anything
