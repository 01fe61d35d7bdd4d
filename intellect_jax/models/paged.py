"""The policy's computation over a paged key/value cache: some new tokens of each row, after a history that is there.

Prefilling is many tokens of a row, decoding is one; both write keys and values first and then attend through the row's
page table, so that rows of one call may read what others of them write.

Shape suffixes: B rows, S new tokens of a row, N pages of a row, M pages, P tokens of a page, L MoE layers, E experts of
a token, K key/value heads, C head width, D embed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from intellect_jax.kernels.attention import paged
from intellect_jax.models import transformer
from intellect_jax.models.config import ModelConfig
from intellect_jax.models.layers import rms_norm
from intellect_jax.models.layout import STACKS, blocks
from intellect_jax.models.ops import LOCAL
from intellect_jax.models.rope import rotation
from intellect_jax.models.transformer import Params

LAYERS = "layers"  # of parameters with a tree for each layer (see apart)


class Cache(NamedTuple):
    """``k``, ``v``: pages of layer i are numbers i * M to (i + 1) * M. ``routed``: experts of each token, int16."""

    k: Float[Array, "k nm p c"]
    v: Float[Array, "k nm p c"]
    routed: Int[Array, "m p l e"]

    @property
    def page_size(self) -> int:
        return self.k.shape[2]


class Rows(NamedTuple):
    """``tables``: each row's pages. Where ``real`` is false, nothing is written that anyone reads."""

    tokens: Int[Array, "b s"]
    positions: Int[Array, "b s"]
    real: Bool[Array, "b s"]
    tables: Int[Array, "b n"]


def init_cache(cfg: ModelConfig, pages: int, page_size: int, dtype: jnp.dtype) -> Cache:
    """``pages`` includes page 0, which is written to for tokens that are not real."""
    shape = (cfg.num_key_value_heads, cfg.num_hidden_layers * pages, page_size, cfg.head_dim)
    routed = (pages, page_size, cfg.num_moe_layers, cfg.num_experts_per_tok)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros(routed, jnp.int16))


def apart(params: Params, cfg: ModelConfig) -> Params:
    """Parameters with an array for each layer, for :func:`extend`: on a CPU a scan copies every layer's out of the
    stack, at every token."""
    rest = {name: value for name, value in params.items() if name not in STACKS.values()}
    counts, trees = {True: 0, False: 0}, []
    for moe in cfg.moe_pattern:
        trees.append(jax.tree.map(lambda x, i=counts[moe]: x[i], params[STACKS[moe]]))
        counts[moe] += 1
    return {**rest, LAYERS: trees}


def extend(
    params: Params, cfg: ModelConfig, cache: Cache, rows: Rows, *, compute_dtype: jnp.dtype, kernel: bool = False
) -> tuple[Float[Array, "b s d"], Cache]:
    """Hidden states of the new tokens, after the final norm, and the cache with them.

    ``params``: the transformer's tree, or what :func:`apart` made of it. ``kernel``: see ``paged.attention``.
    """
    x = params["embed"]["weight"][rows.tokens].astype(compute_dtype)
    pages, offsets = _places(rows, cache.page_size)
    layer = partial(_layer, cfg, kernel, rotation(rows.positions, cfg), rows, pages, offsets, cache.routed.shape[0])
    through = _one_by_one if LAYERS in params else _scanned
    x, k, v, ids = through(params, cfg, layer, x, cache.k, cache.v)
    routed = cache.routed.at[pages, offsets].set(transformer.routed_experts(ids, cfg, rows.tokens.shape))
    return rms_norm(x, params["norm"]["scale"], cfg.rms_norm_eps), Cache(k, v, routed)


def copy_pages(cache: Cache, sources: Int[Array, " i"], targets: Int[Array, " i"]) -> Cache:
    """Pages ``targets`` hold what ``sources`` do, in every layer; page 0 to page 0 is nothing."""
    pages = cache.routed.shape[0]
    firsts = pages * jnp.arange(cache.k.shape[1] // pages)[:, None]
    read, write = (firsts + sources).reshape(-1), (firsts + targets).reshape(-1)
    k, v = (x.at[:, write].set(x[:, read]) for x in (cache.k, cache.v))
    return Cache(k, v, cache.routed.at[targets].set(cache.routed[sources]))


def _places(rows: Rows, page_size: int) -> tuple[Array, Array]:
    """Page and offset of each new token, [B, S]; page 0 where it is not real or past the table."""
    index = jnp.where(rows.real, rows.positions // page_size, rows.tables.shape[1])
    pages = jnp.take_along_axis(rows.tables, index, axis=1, mode="fill", fill_value=0)
    return pages, rows.positions % page_size


def _layer(cfg, kernel, rotations, rows, pages, offsets, count, moe, params, x, k, v, index):
    """One layer: writes keys and values, attends, feeds forward; expert ids [B, S, E], or None in a dense layer."""
    layer = transformer.build_layer(cfg, moe, params)
    q, new_k, new_v = layer.attention.qkv(layer.input_norm(x), *rotations)
    first = index * count
    heads = jnp.arange(k.shape[0])[:, None, None]  # as indices: for a slice a TPU's compiler copies the whole cache
    k, v = (
        old.at[heads, first + pages, offsets].set(jnp.moveaxis(new, 2, 0).astype(old.dtype))
        for old, new in ((k, new_k), (v, new_v))
    )
    attended = paged.attention(q, k, v, first + rows.tables, rows.positions, kernel)
    x, ids = layer.feed_forward(x + layer.attention.o(attended), None, LOCAL)
    return x, k, v, ids


def _one_by_one(params: Params, cfg: ModelConfig, layer: Callable[..., Any], x: Array, k: Array, v: Array):
    ids = []
    for index, (moe, tree) in enumerate(zip(cfg.moe_pattern, params[LAYERS], strict=True)):
        x, k, v, layer_ids = layer(moe, tree, x, k, v, index)
        ids += [layer_ids[None]] if moe else []
    return x, k, v, ids


def _scanned(params: Params, cfg: ModelConfig, layer: Callable[..., Any], x: Array, k: Array, v: Array):
    ids = []
    for block in blocks(cfg):
        body = partial(_block, layer, block.kinds)
        firsts = block.first + len(block.kinds) * jnp.arange(block.repeats)
        scanned = (transformer.scanned_share(params, None, block)[0], firsts)
        (x, k, v), block_ids = jax.lax.scan(body, (x, k, v), scanned, length=block.repeats)
        ids += [transformer.in_order(block_ids)] if block_ids else []
    return x, k, v, ids


def _block(layer, kinds, carry, scanned):
    (x, k, v), (stacks, first) = carry, scanned
    ids = []
    for i, (moe, params, _) in enumerate(transformer.members(kinds, stacks)):
        x, k, v, layer_ids = layer(moe, params, x, k, v, first + i)
        ids += [layer_ids] if moe else []
    return (x, k, v), ids
