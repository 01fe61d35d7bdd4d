"""Grouped matmuls on a CPU: a loop over the groups that have rows, and in it one over blocks of a group's rows.

Trip counts are those of the rows really filled; a group's matrix is read once, whatever its rows. The last block of a
group reaches past it and is masked. ``jax.lax.ragged_dot`` computes every group densely on a CPU (40-70 times slower),
and a batched matmul over gathered matrices copies one a block.

Shape suffixes: E groups, P rows, D in, F out.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.lax import dynamic_slice_in_dim, dynamic_update_slice_in_dim, fori_loop
from jaxtyping import Array, Float, Int

_BLOCK = 32  # rows; XLA's matmuls on a CPU are no faster with more, and fewer are masked


def rows(x: Float[Array, "p d"], w: Float[Array, "e d f"], sizes: Int[Array, " e"]) -> Float[Array, "p f"]:
    """Each row times the matrix of its group; zero past the groups."""
    return _rows(x, w, sizes, transposed=False)


def rows_transposed(x: Float[Array, "p f"], w: Float[Array, "e d f"], sizes: Int[Array, " e"]) -> Float[Array, "p d"]:
    """Each row times the transposed matrix of its group; zero past the groups."""
    return _rows(x, w, sizes, transposed=True)


def _rows(x: Array, w: Array, sizes: Array, transposed: bool) -> Array:
    block = min(_BLOCK, x.shape[0])

    def group(e: Array, blocks: Blocks, y: Array) -> Array:
        matrix = w[e].T if transposed else w[e]
        matrix = jax.lax.optimization_barrier(matrix)  # else it is transposed again for each block

        def step(start: Array, inside: Array, y: Array) -> Array:
            part = jnp.dot(dynamic_slice_in_dim(x, start, block), matrix)
            part = jnp.where(inside, part, dynamic_slice_in_dim(y, start, block))
            return dynamic_update_slice_in_dim(y, part, start, 0)

        return blocks(step, y)

    width = w.shape[1 if transposed else 2]
    return _each_group(sizes, x.shape[0], block, group, jnp.zeros((x.shape[0], width), x.dtype))


def products(x: Float[Array, "p d"], g: Float[Array, "p f"], sizes: Int[Array, " e"]) -> Float[Array, "e d f"]:
    """xᵀ g of each group's rows, summed in float32; zero for groups without any."""
    block = min(_BLOCK, x.shape[0])

    def group(e: Array, blocks: Blocks, out: Array) -> Array:
        def step(start: Array, inside: Array, total: Array) -> Array:
            left, right = (jnp.where(inside, dynamic_slice_in_dim(a, start, block), 0) for a in (x, g))
            left = jax.lax.optimization_barrier(left.T)  # XLA's matmul is slower with a transposed left side
            return total + jnp.dot(left, right, preferred_element_type=jnp.float32)

        total = blocks(step, jnp.zeros(out.shape[1:], jnp.float32))
        return out.at[e].set(total.astype(out.dtype))

    out = jnp.zeros((sizes.size, x.shape[1], g.shape[1]), x.dtype)
    return _each_group(sizes, x.shape[0], block, group, out)


Step = Callable[[Array, Array, Array], Array]  # start of a block, which of its rows belong to the group, carry
Blocks = Callable[[Step, Array], Array]


def _each_group(
    sizes: Int[Array, " e"], rows: int, block: int, group: Callable[[Array, Blocks, Array], Array], carry: Array
) -> Array:
    """Folds ``group`` over the groups that have rows; the function that it gets folds a step over their blocks."""
    ends = jnp.cumsum(sizes)
    filled_groups = jnp.argsort(sizes == 0, stable=True)

    def body(i: Array, carry: Array) -> Array:
        e = filled_groups[i]
        first, end = ends[e] - sizes[e], ends[e]

        def blocks(step: Step, inner: Array) -> Array:
            def one(j: Array, inner: Array) -> Array:
                wanted = first + j * block
                start = jnp.minimum(wanted, rows - block)  # a slice may not reach past the buffer
                row = start + jnp.arange(block)
                return step(start, ((row >= wanted) & (row < end))[:, None], inner)

            return fori_loop(0, (sizes[e] + block - 1) // block, one, inner)

        return group(e, blocks, carry)

    return fori_loop(0, jnp.sum(sizes > 0), body, carry)
