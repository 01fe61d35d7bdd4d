"""The device mesh and shardings on it, by the table of ``axes.py``. Nothing outside parallel/ names a mesh axis."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from intellect_jax.config import default_config
from intellect_jax.parallel.axes import AXES, RULES, axis_sizes


def make_mesh(parallel: ConfigDict, devices: list | None = None) -> Mesh:
    devices = jax.devices() if devices is None else devices
    sizes = axis_sizes(parallel, len(devices))
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def spread(width: int) -> Mesh:
    """``fsdp`` over as many of the devices here as divide ``width``: for work that needs no mesh of a run."""
    devices = jax.devices()
    count = max(n for n in range(1, len(devices) + 1) if width % n == 0)
    return make_mesh(default_config().parallel, devices[:count])


def sharding(mesh: Mesh, *logical: str | None) -> NamedSharding:
    """The sharding of an array whose dimensions have these logical axes."""
    return NamedSharding(mesh, PartitionSpec(*(RULES[axis] for axis in logical)))


def tree_shardings(mesh: Mesh, axes: Any) -> Any:
    """A tree of logical-axis tuples (see ``models.transformer.param_axes``) as a tree of shardings."""
    return jax.tree.map(lambda names: sharding(mesh, *names), axes, is_leaf=lambda x: isinstance(x, tuple))
