"""Attention over packed rows on an NVIDIA GPU: tokamax's flash kernels, Mosaic from Hopper on, Triton before.

Each query sees one range of keys: from the first token of its segment to itself. Forward, blocks outside a range are
skipped, backward those above the diagonal. cuDNN's packed layout, the other flash attention that JAX has, needs a bound
on the segments of a row, keeps a statistic of every query for each of that many, and does not compile without the GPU.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int
from tokamax._src.ops.attention import base  # the public function takes no ranges of keys
from tokamax._src.ops.attention.api import IMPLEMENTATIONS

_TILE = 256  # tokens: what the kernels' blocks of queries divide


def attention(
    q: Float[Array, "b s h c"],
    k: Float[Array, "b s k c"],
    v: Float[Array, "b s k c"],
    segment_ids: Int[Array, "b s"],
    positions: Int[Array, "b s"],
    device: jax.Device,
) -> Float[Array, "b s h c"]:
    """As ``plain.packed_attention``, where the tokens of a segment lie in the order of their positions, from 0.

    Shapes as there, bfloat16 or float16. ``device``: one like those it is compiled for, which need not be here.
    """
    if not flags.FLAGS.is_parsed():  # tokamax would parse this program's arguments as its own
        flags.FLAGS.mark_as_parsed()
    s = q.shape[1]
    q, k, v = (jnp.pad(x, ((0, 0), (0, -s % _TILE), (0, 0), (0, 0))) for x in (q, k, v))
    positions = jnp.pad(positions, ((0, 0), (0, -s % _TILE)))
    return _attention(q, k, v, jnp.arange(q.shape[1]) - positions, device)[:, :s]


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(q, k, v, first: Int[Array, "b s"], device: jax.Device):
    return _forward(q, k, v, first, device)[0]


def _forward(q, k, v, first, device) -> tuple[Array, tuple[Array, Array]]:
    """Output, and of each query the largest score and the softmax's sum."""
    with jax.default_device(device):
        return _kernel(device)(q, k, v, mask=_mask(first), return_residuals=True)


def _attention_fwd(q, k, v, first, device):
    out, statistics = jax.tree.map(lambda x: checkpoint_name(x, "attention"), _forward(q, k, v, first, device))
    return out, (q, k, v, first, out, statistics)


def _attention_bwd(device, saved, grad):
    q, k, v, first, out, statistics = saved
    with jax.default_device(device):
        kernel = _kernel(device)
        bound = kernel.bind(q, k, v, mask=_mask(first))
        options = {name: value for name, value in bound.kwargs.items() if name != "return_residuals"}
        gradients = kernel.vjp(statistics, out, grad, *bound.args, **options)
    return gradients["q"], gradients["k"], gradients["v"], None


_attention.defvjp(_attention_fwd, _attention_bwd)


def _mask(first: Int[Array, "b s"]) -> base.Mask:
    return base.Mask(k_start=first[:, None, :], is_causal=True)


def _kernel(device: jax.Device) -> Any:
    hopper_or_later = float(device.compute_capability) >= 9.0
    return IMPLEMENTATIONS["mosaic_gpu" if hopper_or_later else "triton"]
