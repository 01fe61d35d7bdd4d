"""Grouped matmuls on a CPU: a loop over the groups that have rows, and in it one over blocks of a group's rows.

Trip counts are those of the rows really filled; a group's matrix is read once, whatever its rows. The last block of a
group reaches past it and is masked. ``jax.lax.ragged_dot`` computes every group densely on a CPU (40-70 times slower),
and a batched matmul over gathered matrices copies one a block.

Shape suffixes: E groups, P rows, D in, F out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import dynamic_slice_in_dim, dynamic_update_slice_in_dim, fori_loop
from jaxtyping import Array, Bool, Float, Int

_BLOCK = 32  # rows; XLA's matmuls on a CPU are no faster with more, and fewer are masked
_LONG = 96  # rows of a group


def rows(x: Float[Array, "p d"], w: Float[Array, "e d f"], sizes: Int[Array, " e"]) -> Float[Array, "p f"]:
    """Each row times the matrix of its group; zero past the groups."""
    return _rows(x, w, sizes, transposed=False)


def rows_transposed(x: Float[Array, "p f"], w: Float[Array, "e d f"], sizes: Int[Array, " e"]) -> Float[Array, "p d"]:
    """Each row times the transposed matrix of its group; zero past the groups."""
    return _rows(x, w, sizes, transposed=True)


def _rows(x: Array, w: Array, sizes: Array, transposed: bool) -> Array:
    block, dtype, x = min(_BLOCK, x.shape[0]), x.dtype, _wide(x)
    many = x.shape[0] > _LONG * w.shape[0]  # rows of a group: transposing its matrix once is cheaper than every block's

    def group(e: Array, blocks: Blocks, y: Array) -> Array:
        matrix = _wide(w[e].T if transposed and many else w[e])  # without its barrier transposed again for each block
        contracted = (((1,), (1 if transposed and not many else 0,)), ((), ()))

        def step(j: Array, y: Array) -> Array:
            start, inside = blocks.at(j)
            part = jax.lax.dot_general(dynamic_slice_in_dim(x, start, block), matrix, contracted)
            part = jnp.where(inside, part, dynamic_slice_in_dim(y, start, block))
            return dynamic_update_slice_in_dim(y, part, start, 0)

        return fori_loop(0, blocks.number, step, y)

    width = w.shape[1 if transposed else 2]
    return _each_group(sizes, x.shape[0], block, group, jnp.zeros((x.shape[0], width), x.dtype)).astype(dtype)


def products(x: Float[Array, "p d"], g: Float[Array, "p f"], sizes: Int[Array, " e"]) -> Float[Array, "e d f"]:
    """xᵀ g of each group's rows, summed in float32; zero for groups without any."""
    block, dtype, x, g = min(_BLOCK, x.shape[0]), x.dtype, _wide(x), _wide(g)

    def group(e: Array, blocks: Blocks, out: Array) -> Array:
        def product(j: Array | int) -> Array:
            start, inside = blocks.at(j)
            left = jnp.where(inside, dynamic_slice_in_dim(x, start, block), 0)
            left = jax.lax.optimization_barrier(left.T)  # XLA's matmul is slower with a transposed left side
            return jnp.dot(left, dynamic_slice_in_dim(g, start, block))

        # Of many groups most have but one block or two: adding the first one to zeros would cost as much as itself.
        total = fori_loop(1, blocks.number, lambda j, total: total + product(j), product(0))
        return dynamic_update_slice_in_dim(out, total[None], e, 0)

    out = jnp.zeros((sizes.size, x.shape[1], g.shape[1]), x.dtype)
    return _each_group(sizes, x.shape[0], block, group, out).astype(dtype)


def _wide(a: Array) -> Array:
    """In float32, behind a barrier: XLA's small bfloat16 matmuls, into which it would fold this, are scalar loops."""
    return jax.lax.optimization_barrier(a.astype(jnp.float32))


class Blocks(NamedTuple):
    """The blocks of one group's rows, of which a buffer of ``rows`` rows has those from ``first`` to ``end``."""

    first: Int[Array, ""]
    end: Int[Array, ""]
    block: int
    rows: int

    @property
    def number(self) -> Int[Array, ""]:
        return (self.end - self.first + self.block - 1) // self.block

    def at(self, j: Array | int) -> tuple[Int[Array, ""], Bool[Array, "block 1"]]:
        """Where block j starts, and which of its rows belong to it: a slice may not reach past the buffer."""
        wanted = self.first + j * self.block
        start = jnp.minimum(wanted, self.rows - self.block)
        row = start + jnp.arange(self.block)
        return start, ((row >= wanted) & (row < self.end))[:, None]


def _each_group(
    sizes: Int[Array, " e"], rows: int, block: int, group: Callable[[Array, Blocks, Array], Array], carry: Array
) -> Array:
    """Folds ``group`` over the groups that have rows."""
    ends = jnp.cumsum(sizes)
    filled_groups = jnp.argsort(sizes == 0, stable=True)

    def body(i: Array, carry: Array) -> Array:
        e = filled_groups[i]
        return group(e, Blocks(ends[e] - sizes[e], ends[e], block, rows), carry)

    return fori_loop(0, jnp.sum(sizes > 0), body, carry)
