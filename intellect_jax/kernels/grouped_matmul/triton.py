"""Grouped matmuls on NVIDIA GPUs from Ampere on, as Pallas kernels that Triton compiles.

The rows of every group are cut into tiles of their own; a table tells each program its tile's group and rows, as in
MegaBlocks (arXiv 2211.15841, section 5.1), so that there is a program for each tile of the result and hardly more, not
one for each tile of every group. Inner sums are float32.

Shape suffixes: E groups, P rows, D in, F out.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int


class Tiles(NamedTuple):
    """What a program computes: ``rows`` x ``columns`` of the result, ``inner`` terms of the sums at once."""

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int  # of the loads' pipeline

    def __str__(self) -> str:
        return f"triton {self.rows}x{self.columns}x{self.inner} {self.warps} warps {self.stages} stages"


_TILES = (
    Tiles(128, 256, 64, 8, 3),
    Tiles(128, 256, 64, 8, 4),
    Tiles(128, 128, 64, 4, 3),
    Tiles(128, 128, 64, 8, 4),
    Tiles(64, 256, 64, 4, 4),
    Tiles(64, 128, 64, 4, 4),
)


def tiles_for(kind: str, left: Array, right: Array) -> Iterator[Tiles]:
    """Those that cut the arguments of ``kind`` (see blocks.py) into whole tiles, of 16-bit numbers."""
    if left.dtype != right.dtype or left.dtype not in (jnp.bfloat16, jnp.float16):
        return
    columns = right.shape[1 if kind == "rows_transposed" else -1]
    for tiles in _TILES:
        whole = columns % tiles.columns == 0
        if kind == "products":  # its rows are columns of the left side, its inner dimension the rows of a group
            whole &= left.shape[1] % tiles.rows == 0
        else:
            whole &= left.shape[1] % tiles.inner == 0
        if whole:
            yield tiles


def rows(
    x: Float[Array, "p d"],
    w: Float[Array, "e d f"],
    sizes: Int[Array, " e"],
    *,
    tiles: Tiles,
    transposed: bool = False,
    interpret: bool = False,
) -> Float[Array, "p f"]:
    """Each row times the matrix of its group, w[g] or, of an array [E, F, D], its transpose; rows past the groups are
    unspecified."""
    columns = w.shape[1 if transposed else 2]
    table = _row_tiles(sizes, x.shape[0], tiles.rows)
    return pl.pallas_call(
        partial(_rows_kernel, tiles=tiles, transposed=transposed),
        grid=(columns // tiles.columns, table.group.size),  # programs that share rows follow each other
        out_shape=jax.ShapeDtypeStruct((x.shape[0], columns), x.dtype),
        **_options(tiles, interpret, x.shape[0] * w.size // sizes.size, (x, w)),
    )(*table, x, w)


def products(
    x: Float[Array, "p d"], g: Float[Array, "p f"], sizes: Int[Array, " e"], *, tiles: Tiles, interpret: bool = False
) -> Float[Array, "e d f"]:
    """xᵀ g of each group's rows; zero for groups without any."""
    shape = (sizes.size, x.shape[1], g.shape[1])
    ends = jnp.cumsum(sizes)
    return pl.pallas_call(
        partial(_products_kernel, tiles=tiles),
        grid=(shape[2] // tiles.columns, shape[1] // tiles.rows, shape[0]),
        out_shape=jax.ShapeDtypeStruct(shape, x.dtype),
        **_options(tiles, interpret, x.size * g.shape[1], (x, g)),
    )(ends - sizes, ends, x, g)


def _options(tiles: Tiles, interpret: bool, products: int, arguments: tuple[Array, ...]) -> dict[str, Any]:
    """Of a call that sums ``products`` products, if all rows are filled."""
    return {
        "compiler_params": plgpu.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages),
        "cost_estimate": pl.CostEstimate(
            flops=2 * products, bytes_accessed=sum(x.nbytes for x in arguments), transcendentals=0
        ),
        "interpret": interpret,
    }


class _Table(NamedTuple):
    group: Int[Array, " n"]
    start: Int[Array, " n"]  # first row of the tile
    end: Int[Array, " n"]  # of the group's rows; 0 where there is no tile


def _row_tiles(sizes: Int[Array, " e"], rows: int, tile: int) -> _Table:
    """As many entries as any sizes may need."""
    counts = (sizes + tile - 1) // tile
    ends, tile_ends = jnp.cumsum(sizes), jnp.cumsum(counts)
    index = jnp.arange(rows // tile + min(sizes.size, rows), dtype=jnp.int32)
    group = jnp.minimum(jnp.searchsorted(tile_ends, index, side="right"), sizes.size - 1).astype(jnp.int32)
    start = (ends - sizes)[group] + (index - (tile_ends - counts)[group]) * tile
    return _Table(group, start, jnp.where(index < tile_ends[-1], ends[group], 0))


def _rows_kernel(group_ref, start_ref, end_ref, x_ref, w_ref, y_ref, *, tiles: Tiles, transposed: bool):
    columns = pl.ds(pl.program_id(0) * tiles.columns, tiles.columns)
    tile = pl.program_id(1)
    group, start, end = group_ref[tile], start_ref[tile], end_ref[tile]
    rows, inside = pl.ds(start, tiles.rows), (start + jnp.arange(tiles.rows) < end)[:, None]

    @pl.when(start < end)
    def _():
        def add(i, total):
            inner = pl.ds(i * tiles.inner, tiles.inner)
            left = plgpu.load(x_ref.at[rows, inner], mask=inside, other=0.0)
            if transposed:
                return total + plgpu.dot(left, plgpu.load(w_ref.at[group, columns, inner]).T)
            return total + plgpu.dot(left, plgpu.load(w_ref.at[group, inner, columns]))

        total = jnp.zeros((tiles.rows, tiles.columns), jnp.float32)
        total = jax.lax.fori_loop(0, x_ref.shape[1] // tiles.inner, add, total)
        plgpu.store(y_ref.at[rows, columns], total.astype(y_ref.dtype), mask=inside)


def _products_kernel(start_ref, end_ref, x_ref, g_ref, out_ref, *, tiles: Tiles):
    columns = pl.ds(pl.program_id(0) * tiles.columns, tiles.columns)
    rows = pl.ds(pl.program_id(1) * tiles.rows, tiles.rows)
    group = pl.program_id(2)
    start, end = start_ref[group], end_ref[group]

    def add(i, total):
        first = start + i * tiles.inner
        inner, inside = pl.ds(first, tiles.inner), (first + jnp.arange(tiles.inner) < end)[:, None]
        left = plgpu.load(x_ref.at[inner, rows], mask=inside, other=0.0)
        right = plgpu.load(g_ref.at[inner, columns], mask=inside, other=0.0)
        return total + plgpu.dot(left.T, right)

    total = jnp.zeros((tiles.rows, tiles.columns), jnp.float32)
    total = jax.lax.fori_loop(0, pl.cdiv(end - start, tiles.inner), add, total)
    plgpu.store(out_ref.at[group, rows, columns], total.astype(out_ref.dtype))
