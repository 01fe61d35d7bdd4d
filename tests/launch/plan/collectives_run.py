"""Run by test_collectives in a process with 8 devices: collectives of known size, as the plan's counters see them."""

import json
from dataclasses import astuple
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from launch.plan import cost, hlo
from launch.plan.groups import span

mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
spread = partial(jax.shard_map, mesh=mesh, check_vma=False)
ROWS = PartitionSpec(("data", "fsdp"))


def found(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    module = hlo.parse(jax.jit(function).lower(*arguments).compile().as_text())
    return [
        [each.kind, each.bytes, executions, *astuple(span(each.groups, dict(mesh.shape), 4))]
        for each, executions in cost.count(module).collectives.items()
    ]


def psum(axes):
    return spread(lambda x: jax.lax.psum(x, axes), in_specs=ROWS, out_specs=PartitionSpec())


def scanned(x):
    def body(x, _):
        part = jax.lax.psum_scatter(x, "fsdp", scatter_dimension=0, tiled=True)
        return jax.lax.all_gather(part * 2, "fsdp", axis=0, tiled=True), None

    return jax.lax.scan(body, x, length=6)[0]


PROGRAMS = {
    "psum over two axes": (psum(("data", "fsdp")), (64, 16)),
    "psum over one": (psum("tensor"), (64, 16)),
    "six times scatter and gather": (spread(scanned, in_specs=ROWS, out_specs=ROWS), (64, 16)),
    "permute": (
        spread(lambda x: jax.lax.ppermute(x, "data", [(0, 1), (1, 0)]), in_specs=ROWS, out_specs=ROWS),
        (64, 16),
    ),
    "all to all": (
        spread(lambda x: jax.lax.all_to_all(x, "tensor", 0, 0, tiled=True), in_specs=ROWS, out_specs=ROWS),
        (64, 16),
    ),
}
print(json.dumps({name: found(function, shape) for name, (function, shape) in PROGRAMS.items()}))
