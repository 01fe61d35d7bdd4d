"""A matmul whose rows come in groups, each with a matrix of its own, and its gradients.

The computation is chosen by the platform that the program is compiled for, so that compiling ahead of time for devices
that are not there gets theirs: on a CPU our own in C++ (native.py), or blocks in plain XLA where nothing can compile
them (blocks.py); elsewhere the fastest kernel measured (ragged.py).

Shape suffixes: E groups, P rows, D in, F out.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from intellect_jax.kernels.grouped_matmul import blocks, native, ragged
from intellect_jax.kernels.native import usable


@jax.custom_vjp
def grouped_matmul(x: Float[Array, "p d"], w: Float[Array, "e d f"], sizes: Int[Array, " e"]) -> Float[Array, "p f"]:
    """Row by row x w[g] for the group g of the row: the first ``sizes[0]`` rows are group 0's, and so on.

    Rows past ``sizes.sum()`` (at most P) give zero and get no gradient; they must be finite. Sums are float32, results
    have the dtype of their argument.
    """
    return _dispatched("rows", x, w, sizes)


def _fwd(x, w, sizes):
    return grouped_matmul(x, w, sizes), (x, w, sizes)


def _bwd(saved, grad):
    x, w, sizes = saved
    grad = grad.astype(x.dtype)
    return _dispatched("rows_transposed", grad, w, sizes), _dispatched("products", x, grad, sizes), None


grouped_matmul.defvjp(_fwd, _bwd)


def _dispatched(kind: ragged.Kind, left: Array, right: Array, sizes: Array) -> Array:
    return jax.lax.platform_dependent(
        left,
        right,
        sizes,
        cpu=getattr(native if usable() else blocks, kind),
        cuda=partial(ragged.compute, kind, "cuda"),
        tpu=partial(ragged.compute, kind, "tpu"),
        default=partial(ragged.compute, kind, "other"),
    )


def grouped_matmul_reference(x, w, sizes):
    """The same by multiplying each row with every matrix: slow and obvious."""
    group = jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(x.shape[0]), side="right")
    every = jnp.einsum("pd,edf->pef", x, w, preferred_element_type=jnp.float32)
    own = jnp.take_along_axis(every, group[:, None, None], axis=1, mode="fill", fill_value=0)
    return own[:, 0].astype(x.dtype)
