"""Attention over packed rows in memory linear in their length: online softmax over blocks, with its own gradient.

Queries and keys are cut into blocks. Only pairs of blocks that may see each other, by their bounds of segment and
position, are visited, forward and backward: loops over a list of them, whose length is known at run time only. Saved
for the gradient are the output and each query's logsumexp; scores are computed again, block by block.

Source: Dao, "FlashAttention-2" (2023), algorithms 1 and 2. Queries and keys may be different tokens, in any order, so
that a ring of devices can use :func:`forward` and :func:`backward` on each other's keys.

Shape suffixes: B rows, S queries, T keys, H query heads, K key/value heads, G query heads per key/value head, C head
width, N blocks of all rows, M tokens of a block.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

BLOCK = 128  # tokens of a block; measured on a CPU, see benchmarks/attention.py
_LAST = jnp.iinfo(jnp.int32).max


class Tokens(NamedTuple):
    """What decides who sees whom. Segment 0 is padding, which sees nothing and is not seen."""

    segment_ids: Int[Array, "b s"]
    positions: Int[Array, "b s"]


def attention(
    q: Float[Array, "b s h c"],
    k: Float[Array, "b s k c"],
    v: Float[Array, "b s k c"],
    segment_ids: Int[Array, "b s"],
    positions: Int[Array, "b s"],
) -> Float[Array, "b s h c"]:
    """softmax(q k / sqrt(C)) v over the keys of a query's segment at its position or before; 0 for padding."""
    return _attention(q, k, v, Tokens(segment_ids, positions))


@jax.custom_vjp
def _attention(q, k, v, tokens: Tokens):
    return forward(q, k, v, tokens, tokens)[0].astype(q.dtype)


def _attention_fwd(q, k, v, tokens: Tokens):
    out, lse = forward(q, k, v, tokens, tokens)
    out, lse = checkpoint_name(out.astype(q.dtype), "attention"), checkpoint_name(lse, "attention")
    return out, (q, k, v, tokens, out, lse)


def _attention_bwd(saved, grad):
    q, k, v, tokens, out, lse = saved
    dq, dk, dv = backward(q, k, v, tokens, tokens, out, lse, grad)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_attention.defvjp(_attention_fwd, _attention_bwd)


def forward(
    q: Float[Array, "b s h c"],
    k: Float[Array, "b t k c"],
    v: Float[Array, "b t k c"],
    queries: Tokens,
    keys: Tokens,
) -> tuple[Float[Array, "b s h c"], Float[Array, "b s h"]]:
    """Output and logsumexp of the scores, both float32: 0 and -inf where a query sees none of the keys."""
    (b, s, h, c), kv = q.shape, k.shape[2]
    q_tokens, k_tokens = _token_blocks(queries), _token_blocks(keys)
    q_blocks, k_blocks, v_blocks = _blocks(q, kv), _blocks(k, kv), _blocks(v, kv)

    def one_block(_, scanned):
        q_block, q_token, visits, count = scanned

        def visit(n, carry):
            m, total, acc = carry
            at = visits[n]
            seen = _sees(q_token, jax.tree.map(lambda x: x[at], k_tokens))
            scores = _scores(q_block, k_blocks[at].mT, seen)
            new_m = jnp.maximum(m, scores.max(axis=-1))
            shift = finite(new_m)
            p = jnp.exp(scores - shift[..., None])
            scale = jnp.exp(m - shift)
            acc = acc * scale[..., None] + _matmul(p.astype(v.dtype), v_blocks[at])
            return new_m, total * scale + p.sum(axis=-1), acc

        shape = q_block.shape[:2]
        start = (jnp.full(shape, -jnp.inf), jnp.zeros(shape), jnp.zeros((*shape, c)))
        m, total, acc = jax.lax.fori_loop(0, count, visit, start)
        lse = jnp.where(total > 0, m + jnp.log(total), -jnp.inf)
        return None, (acc / jnp.where(total > 0, total, 1.0)[..., None], lse[..., None])

    visits, counts = _visits(_may_see(q_tokens, k_tokens, b))
    scanned = (q_blocks, _for_each_head(q_tokens, h // kv), visits, counts)
    _, (out, lse) = jax.lax.scan(one_block, None, scanned)
    return _rows(out, b, s, h), _rows(lse, b, s, h)[..., 0]


def backward(
    q: Float[Array, "b s h c"],
    k: Float[Array, "b t k c"],
    v: Float[Array, "b t k c"],
    queries: Tokens,
    keys: Tokens,
    out: Float[Array, "b s h c"],
    lse: Float[Array, "b s h"],
    grad: Float[Array, "b s h c"],
) -> tuple[Float[Array, "b s h c"], Float[Array, "b t k c"], Float[Array, "b t k c"]]:
    """Gradients by q, k and v, float32. ``out`` and ``lse`` may be of more keys than these: theirs is the share."""
    (b, s, h, c), (_, t, kv, _) = q.shape, k.shape
    delta = jnp.sum(out.astype(jnp.float32) * grad.astype(jnp.float32), axis=-1)
    q_tokens, k_tokens = _token_blocks(queries), _token_blocks(keys)
    q_blocks, grad_blocks = _blocks(q, kv), _blocks(grad, kv)
    lse_blocks, delta_blocks = (_blocks(x[..., None], kv).mT for x in (finite(lse), delta))
    # Everything is [key, query]: then one factor in five has to be transposed, and that one once a block. XLA's matmul
    # on a CPU takes three times as long where the left one is transposed.
    q_columns, grad_columns = q_blocks.mT, grad_blocks.mT
    every_query = _for_each_head(q_tokens, h // kv)

    def one_block(dq, scanned):
        k_block, v_block, k_token, visits, count = scanned
        k_columns = jax.lax.optimization_barrier(k_block.mT)

        def visit(n, carry):
            dq, dk, dv = carry
            at = visits[n]
            seen = _sees(jax.tree.map(lambda x: x[at], every_query), k_token).T
            scores = _scores(k_block, q_columns[at], seen)
            p = jnp.exp(scores - lse_blocks[at])
            dv += _matmul(p.astype(grad.dtype), grad_blocks[at])
            ds = p * (_matmul(v_block, grad_columns[at]) - delta_blocks[at]) * c**-0.5
            ds = ds.astype(q.dtype)
            dq = dq.at[at].add(_matmul(k_columns, ds))
            return dq, dk + _matmul(ds, q_blocks[at]), dv

        start = (dq, jnp.zeros(k_block.shape), jnp.zeros(k_block.shape))
        dq, dk, dv = jax.lax.fori_loop(0, count, visit, start)
        return dq, (dk, dv)

    visits, counts = _visits(_may_see(q_tokens, k_tokens, b).mT)
    scanned = (_blocks(k, kv), _blocks(v, kv), k_tokens, visits, counts)
    dq, (dk, dv) = jax.lax.scan(one_block, jnp.zeros(q_columns.shape), scanned)
    return _rows(dq.mT, b, s, h), _rows(dk, b, t, kv), _rows(dv, b, t, kv)


def visited_pairs(queries: Tokens, keys: Tokens) -> Int[Array, ""]:
    """How many pairs of blocks :func:`forward` visits: the work, in units of a block's scores."""
    return _may_see(_token_blocks(queries), _token_blocks(keys), queries.positions.shape[0]).sum()


def _blocks(x: Float[Array, "b s h c"], kv: int) -> Float[Array, "n kv gm c"]:
    """Rows padded to whole blocks; within a block, the heads of one key/value head follow each other."""
    _, s, h, c = x.shape
    size = min(BLOCK, s)
    padded = jnp.pad(x, ((0, 0), (0, -s % size), (0, 0), (0, 0)))
    split = padded.reshape(-1, size, kv, h // kv, c).transpose(0, 2, 3, 1, 4)
    return split.reshape(split.shape[0], kv, -1, c)


def _rows(x: Float[Array, "n kv gm c"], b: int, s: int, h: int) -> Float[Array, "b s h c"]:
    """The inverse of :func:`_blocks`."""
    n, kv, _, c = x.shape
    split = x.reshape(n, kv, h // kv, -1, c).transpose(0, 3, 1, 2, 4)
    return split.reshape(b, -1, h, c)[:, :s]


def _token_blocks(tokens: Tokens) -> Tokens:
    """[B, S] as [N, M]; what fills the last blocks is padding."""
    s = tokens.positions.shape[1]
    size = min(BLOCK, s)
    return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, -s % size))).reshape(-1, size), tokens)


def _may_see(queries: Tokens, keys: Tokens, rows: int) -> Bool[Array, "b q k"]:
    """False for pairs of blocks of a row in which no query sees a key, by bounds alone.

    A query (segment, position) sees only keys of its own segment that do not come after it: none in a block of smaller
    segments, and none in a block whose first (segment, position) comes after the last one of the query's block.
    """
    q, k = _bounds(queries, rows), _bounds(keys, rows)
    q_first, q_last, q_at = (x[:, :, None] for x in (q.first, q.last, q.last_position))
    k_first, k_last, k_at = (x[:, None, :] for x in (k.first, k.last, k.first_position))
    return (k_last >= q_first) & ((k_first < q_last) | ((k_first == q_last) & (k_at <= q_at)))


class _Bounds(NamedTuple):
    """Of the tokens of each block [B, N] that are not padding."""

    first: Int[Array, "b n"]  # smallest segment; the largest integer where all is padding
    first_position: Int[Array, "b n"]  # smallest position in that segment
    last: Int[Array, "b n"]  # largest segment; -1 where all is padding
    last_position: Int[Array, "b n"]  # largest position in that segment


def _bounds(tokens: Tokens, rows: int) -> _Bounds:
    segments, positions = (x.reshape(rows, -1, x.shape[-1]) for x in tokens)
    first = jnp.where(segments > 0, segments, _LAST).min(axis=-1)
    last = jnp.where(segments > 0, segments, -1).max(axis=-1)
    first_position = jnp.where(segments == first[..., None], positions, _LAST).min(axis=-1)
    last_position = jnp.where(segments == last[..., None], positions, -1).max(axis=-1)
    return _Bounds(first, first_position, last, last_position)


def _visits(pairs: Bool[Array, "b x y"]) -> tuple[Int[Array, "n y"], Int[Array, " n"]]:
    """For each block x of every row: the blocks y to visit, by their index among all rows', then others; how many."""
    b, _, per_row = pairs.shape
    order = jnp.argsort(~pairs, axis=-1, stable=True) + jnp.arange(b)[:, None, None] * per_row
    return order.reshape(-1, per_row), pairs.sum(axis=-1).reshape(-1)


def _scores(left: Float[Array, "kv x c"], right: Float[Array, "kv c y"], seen: Bool[Array, "x y"]):
    """Scaled scores, -inf where the query does not see the key."""
    return jnp.where(seen, _matmul(left, right) * left.shape[-1] ** -0.5, -jnp.inf)


def _sees(queries: Tokens, keys: Tokens) -> Bool[Array, "gm m"]:
    same = (queries.segment_ids[:, None] == keys.segment_ids) & (keys.segment_ids > 0)
    return same & (keys.positions <= queries.positions[:, None])


def _for_each_head(tokens: Tokens, heads: int) -> Tokens:
    """[N, M] -> [N, GM], as the queries of :func:`_blocks` follow each other."""
    return jax.tree.map(lambda x: jnp.tile(x, (1, heads)), tokens)


def _matmul(a: Float[Array, "kv x y"], b: Float[Array, "kv y z"]) -> Float[Array, "kv x z"]:
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def finite(x: Float[Array, " *any"]) -> Float[Array, " *any"]:
    """0 for the -inf of a query that has seen no key, so that exp(-inf - x) is 0."""
    return jnp.where(jnp.isneginf(x), 0.0, x)
