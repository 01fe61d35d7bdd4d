"""Grouped matmuls on a CPU by the kernels of native/grouped.h, in float32.

Shape suffixes: E groups, P rows, D in, F out.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from intellect_jax.kernels.native import call


def rows(x: Float[Array, "p d"], w: Float[Array, "e d f"], sizes: Int[Array, " e"]) -> Float[Array, "p f"]:
    """Each row times the matrix of its group; zero past the groups."""
    return _rows(x, w, sizes, transposed=False)


def rows_transposed(x: Float[Array, "p f"], w: Float[Array, "e d f"], sizes: Int[Array, " e"]) -> Float[Array, "p d"]:
    """Each row times the transposed matrix of its group; zero past the groups."""
    return _rows(x, w, sizes, transposed=True)


def products(x: Float[Array, "p d"], g: Float[Array, "p f"], sizes: Int[Array, " e"]) -> Float[Array, "e d f"]:
    """xᵀ g of each group's rows; zero for groups without any."""
    out = jax.ShapeDtypeStruct((sizes.size, x.shape[1], g.shape[1]), jnp.float32)
    return call("GroupedProducts", out, _wide(x), _wide(g), sizes.astype(jnp.int32)).astype(x.dtype)


def _rows(x: Array, w: Array, sizes: Array, transposed: bool) -> Array:
    out = jax.ShapeDtypeStruct((x.shape[0], w.shape[1 if transposed else 2]), jnp.float32)
    return call(
        "GroupedRows", out, _wide(x), _wide(w), sizes.astype(jnp.int32), transposed=np.bool_(transposed)
    ).astype(x.dtype)


def _wide(x: Array) -> Array:
    return x.astype(jnp.float32)
