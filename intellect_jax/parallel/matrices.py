"""Work on whole matrices whose pieces lie on a mesh: every device gets an equal share of them, each matrix whole."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Float

Axes = tuple[str, ...]


class Matrices(NamedTuple):
    """How an array [stack..., rows..., columns...] is a stack of matrices, and where its pieces lie (None: together).

    ``stack``: leading axes; ``rows``: axes after them that together are a matrix's rows. Of several axes that are
    rows, or columns, only the first may be sharded.
    """

    stack: int
    rows: int
    sharding: NamedSharding | None

    def lengths(self, shape: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of one matrix."""
        split = self.stack + self.rows
        return prod(shape[self.stack : split]), prod(shape[split:])

    def axes(self) -> tuple[Axes, Axes, Axes]:
        """Mesh axes longer than 1 that shard the stack, the rows and the columns."""
        if self.sharding is None:
            return (), (), ()
        mesh, spec = self.sharding.mesh.shape, self.sharding.spec
        names = [(part,) if isinstance(part, str) else tuple(part or ()) for part in spec]
        split = self.stack + self.rows

        def over(first: int, end: int | None) -> Axes:
            return tuple(name for part in names[first:end] for name in part if mesh[name] > 1)

        return over(0, self.stack), over(self.stack, split), over(split, None)


class Group(NamedTuple):
    """What arrays have in common whose matrices are worked on together. Rows are the shorter side."""

    lengths: tuple[int, int]
    axes: tuple[Axes, Axes, Axes]


def map_matrices(
    function: Callable[[Float[Array, "n r c"]], Float[Array, "n r c"]],
    arrays: Sequence[Array],
    views: Sequence[Matrices],
) -> list[Array]:
    """``function`` of every matrix, no device doing what another does; jit it.

    ``function`` works on each matrix by itself, maps zeros to zeros, and f(x^T) is f(x)^T: matrices come with r <= c.
    Arrays have one dtype, and views one mesh. Matrices of one shape and layout are counted together; where their number
    is no multiple of the devices, zeros fill up.
    """
    groups: dict[Group, list[int]] = defaultdict(list)
    for index, (array, view) in enumerate(zip(arrays, views, strict=True)):
        groups[_group(array.shape, view)].append(index)
    results: dict[int, Array] = {}
    for group, members in groups.items():
        done = _map_group(function, [arrays[i] for i in members], [views[i] for i in members], group.axes)
        results.update(zip(members, done, strict=True))
    return [results[i] for i in range(len(arrays))]


def _group(shape: tuple[int, ...], view: Matrices) -> Group:
    stack, rows, columns = view.axes()
    lengths = view.lengths(shape)
    if _lies(shape, view):
        return Group(lengths[::-1], (stack, columns, rows))
    return Group(lengths, (stack, rows, columns))


def _lies(shape: tuple[int, ...], view: Matrices) -> bool:
    """Whether matrices have to be transposed; square ones so that equal layouts meet."""
    (rows, columns), (_, row_axes, column_axes) = view.lengths(shape), view.axes()
    return (rows, row_axes) > (columns, column_axes)


def _map_group(function, arrays: list[Array], views: list[Matrices], axes: tuple[Axes, Axes, Axes]) -> list[Array]:
    turned = [_lies(array.shape, view) for array, view in zip(arrays, views, strict=True)]
    sharding = views[0].sharding

    def local(*pieces: Array) -> list[Array]:
        flat = [_flat(*each) for each in zip(pieces, views, turned, strict=True)]
        together = jnp.concatenate(flat)
        done = function(together) if sharding is None else _deal_out(function, together, sharding.mesh.shape, axes)
        starts = [sum(len(x) for x in flat[:i]) for i in range(1, len(flat))]
        parts = zip(jnp.split(done, starts), pieces, views, turned, strict=True)
        return [_unflat(part, piece.shape, view, turn) for part, piece, view, turn in parts]

    if sharding is None:
        return local(*arrays)
    specs = [view.sharding.spec for view in views if view.sharding is not None]
    return jax.shard_map(local, mesh=sharding.mesh, in_specs=tuple(specs), out_specs=specs, check_vma=False)(*arrays)


def _flat(piece: Array, view: Matrices, turn: bool) -> Float[Array, "n r c"]:
    """The matrices of a device's piece of an array."""
    matrices = piece.reshape(prod(piece.shape[: view.stack]), *view.lengths(piece.shape))
    return matrices.swapaxes(1, 2) if turn else matrices


def _unflat(matrices: Float[Array, "n r c"], shape: tuple[int, ...], view: Matrices, turn: bool) -> Array:
    return (matrices.swapaxes(1, 2) if turn else matrices).reshape(shape)


def _deal_out(
    function, x: Float[Array, "n r c"], mesh: Mapping[str, int], axes: tuple[Axes, Axes, Axes]
) -> Float[Array, "n r c"]:
    """Of a device's pieces of n matrices the results, each computed whole on one device. ``mesh``: length of each axis.

    Devices that hold the same pieces first share them out, then those that hold pieces of the same matrices exchange
    pieces of some for the rest of others.
    """
    stack, rows, columns = axes
    copies = tuple(name for name, size in mesh.items() if size > 1 and name not in stack + rows + columns)
    count = len(x)
    ways = prod(mesh[name] for name in copies + rows + columns)
    x = jnp.pad(x, ((0, -count % ways), (0, 0), (0, 0)))
    exchanges = [(names, side) for names, side in ((rows, 1), (columns, 2)) if names]
    if copies:
        share = len(x) // prod(mesh[name] for name in copies)
        x = jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(copies) * share, share)
    for names, side in exchanges:
        x = jax.lax.all_to_all(x, names, 0, side, tiled=True)
    x = function(x)
    for names, side in reversed(exchanges):
        x = jax.lax.all_to_all(x, names, side, 0, tiled=True)
    if copies:
        x = jax.lax.all_gather(x, copies, tiled=True)
    return x[:count]
