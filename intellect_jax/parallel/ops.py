"""The policy's operations on a mesh."""

from __future__ import annotations

from functools import partial

import jax
from jax.sharding import Mesh
from jaxtyping import Array
from ml_collections import ConfigDict

from intellect_jax.kernels.products import on_a_cpu
from intellect_jax.models.ops import Ops
from intellect_jax.parallel.attention import make_attention, make_shuffles
from intellect_jax.parallel.experts import make_experts
from intellect_jax.parallel.logprobs import make_logprobs
from intellect_jax.parallel.mesh import sharding

_UNROLLED = 4  # layers on a CPU; a loop copies each layer's weights and activations, an eighth of a step at 3 layers


def make_ops(config: ConfigDict, mesh: Mesh) -> Ops:
    """How the policy computes on ``mesh``."""
    attention = make_attention(config, mesh)
    if mesh.size == 1:
        if mesh.devices.item().platform != "cpu":
            return Ops(attention=attention)
        return Ops(attention=attention, product=on_a_cpu(), unrolled=_UNROLLED)
    shuffle, unshuffle = make_shuffles(config, mesh)
    return Ops(
        attention=attention,
        experts=make_experts(mesh, config.parallel),
        logprobs=make_logprobs(mesh),
        constrain=partial(_constrain, mesh),
        shuffle=shuffle,
        unshuffle=unshuffle,
    )


def _constrain(mesh: Mesh, x: Array, *axes: str | None) -> Array:
    return jax.lax.with_sharding_constraint(x, sharding(mesh, *axes))
