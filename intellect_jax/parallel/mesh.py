"""The device mesh and the one table that maps logical axes to it. Nothing outside parallel/ names a mesh axis.

Mesh axes: ``data`` replicas of the sharded groups, ``fsdp`` parameters and batch rows, ``expert`` experts,
``context`` sequence, ``tensor`` heads, MLP width and vocabulary.
"""

from __future__ import annotations

from math import prod
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from intellect_jax.errors import UserError

AXES = ("data", "fsdp", "expert", "context", "tensor")

# Logical axis of a parameter or activation -> mesh axes that shard it.
RULES: dict[str | None, str | tuple[str, ...] | None] = {
    "rows": ("data", "fsdp", "expert"),
    "sequence": "context",
    "layers": None,
    "embed": "fsdp",
    "embed_norm": None,
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "expert": "expert",
    "expert_mlp": "tensor",
    "router": None,
    None: None,
}


def axis_sizes(parallel: ConfigDict, devices: int) -> dict[str, int]:
    """Sizes of the mesh axes; one axis of -1 takes the devices that are left.

    Raises:
        UserError: the sizes cannot multiply to ``devices``.
    """
    sizes = {axis: int(parallel[axis]) for axis in AXES}
    free = [axis for axis, size in sizes.items() if size == -1]
    fixed = prod(size for size in sizes.values() if size != -1)
    if len(free) > 1:
        raise UserError(f"parallel: only one axis may be -1, not {', '.join(free)}")
    if free:
        sizes[free[0]] = devices // fixed
    if prod(sizes.values()) != devices:
        raise UserError(f"parallel: axes {sizes} do not multiply to {devices} devices")
    return sizes


def make_mesh(parallel: ConfigDict, devices: list | None = None) -> Mesh:
    devices = jax.devices() if devices is None else devices
    sizes = axis_sizes(parallel, len(devices))
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def sharding(mesh: Mesh, *logical: str | None) -> NamedSharding:
    """The sharding of an array whose dimensions have these logical axes."""
    return NamedSharding(mesh, PartitionSpec(*(RULES[axis] for axis in logical)))


def tree_shardings(mesh: Mesh, axes: Any) -> Any:
    """A tree of logical-axis tuples (see ``models.transformer.param_axes``) as a tree of shardings."""
    return jax.tree.map(lambda names: sharding(mesh, *names), axes, is_leaf=lambda x: isinstance(x, tuple))
