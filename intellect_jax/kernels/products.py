"""Matrix products of float32 on a CPU, each output as the sum of a few shorter sums.

A CPU adds an output's products up one after the other, and every addition rounds to the last bit of the sum so far; of
products a few are large (Sun et al. 2024, arXiv:2402.17762), and what comes after them loses the most. Several shorter
sums lose less: SmolLM2's layers are off from float64 by 2.5e-6 nats (root mean square of the log-probabilities), and
by 3.6e-6 in one sum each. The forward pass takes a twentieth longer. Gradients need none of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from math import prod

import jax
import jax.numpy as jnp
from jaxtyping import Array

from intellect_jax.kernels.grouped_matmul import native as grouped
from intellect_jax.kernels.native import usable

Product = Callable[[Array, Array, int], Array]
TERMS = 144  # products in a sum, about; half as many leave an eighth less error


def plain(x: Array, w: Array, axes: int) -> Array:
    """Contracts the last ``axes`` axes of ``x`` with the first of ``w``."""
    return jnp.tensordot(x, w, axes=axes)


def on_a_cpu() -> Product:
    """What a CPU that has all of both factors multiplies with."""
    return native if usable() else in_parts


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def native(x: Array, w: Array, axes: int) -> Array:
    """:func:`plain` by the kernels of native/gemm.h, which add up in parts, where both are float32."""
    if not _single(x, w):
        return plain(x, w, axes)
    x_PD, w_DF, rows = _flat(x, w, axes)
    return grouped.rows(x_PD, w_DF[None], rows).reshape(*x.shape[: x.ndim - axes], *w.shape[axes:])


def _single(x: Array, w: Array) -> bool:
    return x.dtype == w.dtype == jnp.float32


def _flat(x: Array, w: Array, axes: int) -> tuple[Array, Array, Array]:
    """Both as matrices, and the number of rows as an array: one group's."""
    inner = prod(w.shape[:axes])
    x_PD, w_DF = x.reshape(-1, inner), w.reshape(inner, -1)
    return x_PD, w_DF, jnp.full(1, x_PD.shape[0], jnp.int32)


def _native_backward(axes: int, factors: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, w = factors
    if not _single(x, w):
        return _backward(axes, factors, gradient)
    x_PD, w_DF, rows = _flat(x, w, axes)
    g_PF = gradient.reshape(x_PD.shape[0], -1)
    by_x = grouped.rows_transposed(g_PF, w_DF[None], rows)
    return by_x.reshape(x.shape), grouped.products(x_PD, g_PF, rows).reshape(w.shape)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def in_parts(x: Array, w: Array, axes: int) -> Array:
    """:func:`plain`, in sums of about TERMS products where both are float32."""
    count = _count(w, axes) if _single(x, w) else 1
    split = partial(jnp.split, indices_or_sections=count)
    sums = (plain(*both, axes) for both in zip(split(x, axis=x.ndim - axes), split(w, axis=0), strict=True))
    return reduce(jnp.add, sums)


def _count(w: Array, axes: int) -> int:
    """How many parts: such that the first axis has as many equal ones."""
    wanted = max(1, prod(w.shape[:axes]) // TERMS)
    return next(count for count in range(wanted, 0, -1) if w.shape[0] % count == 0)


def _backward(axes: int, factors: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    return jax.vjp(partial(plain, axes=axes), *factors)[1](gradient)


in_parts.defvjp(lambda x, w, axes: (in_parts(x, w, axes), (x, w)), _backward)
native.defvjp(lambda x, w, axes: (native(x, w, axes), (x, w)), _native_backward)
