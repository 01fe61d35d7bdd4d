"""Token log-probabilities on a mesh: every device has its tokens and its columns and rows of the head's kernel.

Softmax sums are combined over the devices that share the vocabulary. A chunk of columns at a time is gathered from the
devices that share its rows, and its gradient scattered over them, so that no device ever holds more of the kernel.
Members are compacted within a device. No collective is in the loop over tokens: devices may skip different chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
from jax.sharding import Mesh
from jaxtyping import Array

from intellect_jax.kernels.logprobs import differentiable
from intellect_jax.kernels.logprobs.chunked import Shards, backward_pass, forward_pass
from intellect_jax.parallel.axes import RULES
from intellect_jax.parallel.mesh import sharding

_VOCABULARY, _ROWS = RULES["vocab"], RULES["embed"]  # axes of the kernel's columns and rows
_TOKENS = (*RULES["rows"], RULES["sequence"])  # type: ignore[misc]


def make_logprobs(mesh: Mesh) -> Callable:
    """``kernels.logprobs.member_logprobs`` of global arrays.

    Rows, sequence, vocabulary and embed must be multiples of the axes that shard them.
    """
    hidden, kernel = sharding(mesh, "rows", "sequence", None).spec, sharding(mesh, "embed", "vocab").spec
    token = sharding(mesh, "rows", "sequence").spec
    inputs = (hidden, kernel, token, token, token)
    # Nothing differentiates through these: what is the same on several devices need not be proven so.
    over_mesh = partial(jax.shard_map, mesh=mesh, check_vma=False)
    forward = over_mesh(_forward, in_specs=inputs, out_specs=(token,) * 3)
    backward = over_mesh(_backward, in_specs=(*inputs, *(token,) * 4), out_specs=(hidden, kernel))
    return differentiable(forward, backward)


def _forward(*inputs: Array) -> tuple[Array, ...]:
    return partial(forward_pass, shards=_shards())(*inputs)


def _backward(*inputs: Array) -> tuple[Array, ...]:
    return partial(backward_pass, shards=_shards())(*inputs)


def _shards() -> Shards:
    return Shards(
        part=jax.lax.axis_index(_VOCABULARY),
        gather=partial(jax.lax.all_gather, axis_name=_ROWS, axis=0, tiled=True),
        scatter=partial(jax.lax.psum_scatter, axis_name=_ROWS, scatter_dimension=0, tiled=True),
        largest=partial(jax.lax.pmax, axis_name=_VOCABULARY),
        total=partial(jax.lax.psum, axis_name=_VOCABULARY),
        everyone=partial(jax.lax.psum, axis_name=tuple(axis for axis in _TOKENS if axis != _ROWS)),
    )
