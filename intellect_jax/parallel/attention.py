"""Attention on a mesh: by which kernel, and by which strategy where a row's tokens lie on several devices."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
from jax.sharding import Mesh
from jaxtyping import Array
from ml_collections import ConfigDict

from intellect_jax.kernels.attention.choice import attention
from intellect_jax.parallel.context import ring, ulysses
from intellect_jax.parallel.mesh import sharding


def make_attention(config: ConfigDict, mesh: Mesh) -> Callable[..., Array]:
    """``Ops.attention`` of a mesh: every device computes its rows and heads, and tokens as ``parallel.context`` says."""
    whole_rows = partial(attention, config.trainer.attention, mesh.devices.flat[0].platform)
    if mesh.size == 1:
        return whole_rows
    local = whole_rows
    if mesh.shape["context"] > 1:
        strategies = {"ring": ring.attention, "ulysses": partial(ulysses.attention, whole_rows)}
        local = partial(strategies[config.parallel.context_strategy], axis="context")
    heads, kv_heads = (sharding(mesh, "rows", "sequence", name, None).spec for name in ("heads", "kv_heads"))
    tokens = sharding(mesh, "rows", "sequence").spec
    specs = (heads, kv_heads, kv_heads, tokens, tokens)
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=heads, check_vma=False)
