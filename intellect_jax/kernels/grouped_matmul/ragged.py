"""Grouped matmuls by kernels: our own on a GPU (triton.py), tokamax's (https://github.com/openxla/tokamax) where it is
installed, XLA's everywhere.

Kernels leave rows past the groups, and the products of empty groups, unspecified: both are masked here, and XLA fuses
the mask into whatever reads the result.
"""

from __future__ import annotations

from functools import cache, partial
from types import ModuleType
from typing import Literal

import jax
import jax.numpy as jnp
from jax.lax import RaggedDotDimensionNumbers
from jaxtyping import Array, Int

from intellect_jax.kernels.grouped_matmul import tuning

Kind = Literal["rows", "rows_transposed", "products"]  # x w, x wᵀ, xᵀ g of each group

_DIMENSIONS: dict[Kind, RaggedDotDimensionNumbers] = {
    "rows": RaggedDotDimensionNumbers((([1], [1]), ([], [])), [0], [0]),
    "rows_transposed": RaggedDotDimensionNumbers((([1], [2]), ([], [])), [0], [0]),
    "products": RaggedDotDimensionNumbers((([0], [0]), ([], [])), [0], []),
}
_TOKAMAX = {"cuda": ("mosaic_gpu", "triton"), "tpu": ("mosaic_tpu",)}


def compute(kind: Kind, platform: str, left: Array, right: Array, sizes: Int[Array, " e"]) -> Array:
    """The grouped matmul ``kind`` (see blocks.py) of ``left`` and ``right`` by the fastest kernel for ``platform``."""
    kernels = candidates(kind, platform, left, right)
    result = tuning.fastest(kind, platform, kernels, left, right, sizes)(left, right, sizes)
    if kind == "products":
        return jnp.where((sizes > 0)[:, None, None], result, 0)
    return jnp.where((jnp.arange(left.shape[0]) < sizes.sum())[:, None], result, 0)


def candidates(kind: Kind, platform: str, left: Array, right: Array) -> dict[str, tuning.Kernel]:
    """Kernels that compute this, by name; the first is for where nothing can be measured."""
    found: dict[str, tuning.Kernel] = {"xla": partial(_xla, kind)}
    if left.dtype != jnp.bfloat16:  # of float32, the others would keep fewer bits
        return found
    if platform == "cuda":
        found = {**_ours(kind, left, right), **found}
    if platform in _TOKAMAX and _tokamax() is not None:  # last: it wants to see the device
        found |= {f"tokamax {name}": partial(_tokamax_kernel, name, kind) for name in _TOKAMAX[platform]}
    return found


def _ours(kind: Kind, left: Array, right: Array) -> dict[str, tuning.Kernel]:
    from intellect_jax.kernels.grouped_matmul import triton  # half a second that a CPU need not wait

    kernel = triton.products if kind == "products" else partial(triton.rows, transposed=kind == "rows_transposed")
    return {str(tiles): partial(kernel, tiles=tiles) for tiles in triton.tiles_for(kind, left, right)}


def _xla(kind: Kind, left: Array, right: Array, sizes: Int[Array, " e"]) -> Array:
    out = jax.lax.ragged_dot_general(left, right, sizes, _DIMENSIONS[kind], preferred_element_type=jnp.float32)
    return out.astype(left.dtype)


def _tokamax_kernel(name: str, kind: Kind, left: Array, right: Array, sizes: Int[Array, " e"]) -> Array:
    if name == "mosaic_gpu" and any(size % 128 for size in (*left.shape[1:], *right.shape[1:])):
        raise NotImplementedError("tokamax 0.0.12 leaves out what of the inner dimension no whole tile covers")
    tokamax = _tokamax()
    assert tokamax is not None
    return tokamax.ragged_dot_general(
        left, right, sizes, _DIMENSIONS[kind], preferred_element_type=left.dtype, implementation=name
    )


@cache
def _tokamax() -> ModuleType | None:
    try:
        import tokamax
        from absl import flags
    except ImportError:
        return None
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # else tokamax reads its options from our command line and ends the process
    return tokamax
