"""Attention on a mesh: by which kernel, and by which strategy where a row's tokens lie on several devices."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array
from ml_collections import ConfigDict

from intellect_jax.kernels.attention.choice import attention, hops, refuse_misfit
from intellect_jax.models.ops import in_place
from intellect_jax.parallel.context import ring, ulysses, zigzag
from intellect_jax.parallel.mesh import sharding


def make_attention(config: ConfigDict, mesh: Mesh) -> Callable[..., Array]:
    """``Ops.attention`` of a mesh: every device computes for its rows and heads, and for its tokens by a strategy.

    Raises:
        UserError: the kernel asked for does not run on these devices.
    """
    device = mesh.devices.flat[0]
    refuse_misfit(config.trainer.attention, device)
    whole_rows = partial(attention, config.trainer.attention, device)
    if mesh.size == 1:
        return whole_rows
    local = whole_rows
    if mesh.shape["context"] > 1:
        hop = hops(config.trainer.attention, device, jnp.dtype(config.model.compute_dtype))
        strategies: dict[str, Callable[..., Array]] = {
            "ring": partial(ring.attention, hop),
            "ulysses": partial(ulysses.attention, whole_rows),
        }
        local = partial(strategies[config.parallel.context_strategy], axis="context")
    heads, kv_heads = (sharding(mesh, "rows", "sequence", name, None).spec for name in ("heads", "kv_heads"))
    tokens = sharding(mesh, "rows", "sequence").spec
    specs = (heads, kv_heads, kv_heads, tokens, tokens)
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=heads, check_vma=False)


def make_shuffles(config: ConfigDict, mesh: Mesh) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """``Ops.shuffle`` and ``unshuffle`` of a mesh."""
    shards = mesh.shape["context"]
    if shards == 1 or config.parallel.context_strategy != "ring":
        return in_place, in_place
    return partial(zigzag.shuffle, shards=shards), partial(zigzag.unshuffle, shards=shards)
