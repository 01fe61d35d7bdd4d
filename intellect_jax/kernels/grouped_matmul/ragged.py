"""Grouped matmuls by kernels: tokamax's (https://github.com/openxla/tokamax) where it is installed, else XLA's own.

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
# By platform, in the order of preference where nothing can be measured.
_TOKAMAX = {"cuda": ("triton", "mosaic_gpu"), "tpu": ("mosaic_tpu",)}


def compute(kind: Kind, platform: str, left: Array, right: Array, sizes: Int[Array, " e"]) -> Array:
    """The grouped matmul ``kind`` (see blocks.py) of ``left`` and ``right`` by the fastest kernel for ``platform``."""
    kernels = {name: partial(_kernel, name, kind) for name in _names(kind, platform, left, right)}
    result = tuning.fastest(kind, platform, kernels, left, right, sizes)(left, right, sizes)
    if kind == "products":
        return jnp.where((sizes > 0)[:, None, None], result, 0)
    return jnp.where((jnp.arange(left.shape[0]) < sizes.sum())[:, None], result, 0)


def _kernel(name: str, kind: Kind, left: Array, right: Array, sizes: Int[Array, " e"]) -> Array:
    if name == "xla":
        return jax.lax.ragged_dot_general(
            left, right, sizes, _DIMENSIONS[kind], preferred_element_type=jnp.float32
        ).astype(left.dtype)
    tokamax = _tokamax()
    assert tokamax is not None
    return tokamax.ragged_dot_general(
        left, right, sizes, _DIMENSIONS[kind], preferred_element_type=left.dtype, implementation=name
    )


def _names(kind: Kind, platform: str, left: Array, right: Array) -> tuple[str, ...]:
    """Kernels that compute this correctly; those of tokamax as of 0.0.12."""
    if platform not in _TOKAMAX or _tokamax() is None:
        return ("xla",)
    names = list(_TOKAMAX[platform])
    sizes = left.shape[-1], *right.shape[-2:]
    whole_tiles = left.dtype == jnp.bfloat16 and all(size % 128 == 0 for size in sizes[:-1] + sizes[-1:])
    if not whole_tiles and "mosaic_gpu" in names:
        names.remove("mosaic_gpu")  # it leaves out what of the inner dimension no whole tile covers
    return (*names, "xla")


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
