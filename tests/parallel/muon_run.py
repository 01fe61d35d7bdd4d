"""One step of Muon on meshes of fake devices; run by test_muon_meshes.py in a process.

python muon_run.py OUT.npz MESH...: each mesh like fsdp=4,expert=2, and ``one`` for one device. OUT.npz gets every
parameter's update under <mesh><path>; the last line printed is JSON: FLOPs of all matrix products in the compiled
program that each device of a mesh runs.
"""

import dataclasses
import json
import re
import sys
from math import prod
from typing import Any

import jax
import numpy as np

from intellect_jax.config import default_config
from intellect_jax.parallel.axes import AXES
from intellect_jax.parallel.mesh import make_mesh
from intellect_jax.trainer.optimizer import make_optimizer
from intellect_jax.trainer.setup import abstract_state, abstract_trained
from tests.policies import SMALL, quick_jit, random_params

# Of each kind of matrix as many as 8 devices share evenly, large enough that little else counts.
CFG = dataclasses.replace(
    SMALL, hidden_size=64, num_hidden_layers=8, head_dim=24, moe_intermediate_size=96, first_k_dense_replace=0
)


def update_on(name: str) -> tuple[Any, int]:
    """Updates of fixed gradients on a mesh, and FLOPs of one device."""
    axes = {} if name == "one" else {k: int(v) for k, v in (part.split("=") for part in name.split(","))}
    config = default_config()
    config.trainer.optimizer.update(name="muon", weight_decay=0.1)
    config.trainer.optimizer.muon.dtype = "float32"
    config.parallel.update(dict.fromkeys(AXES, 1) | axes)
    mesh = make_mesh(config.parallel, jax.devices()[: int(np.prod(list(axes.values()), initial=1))])
    params = abstract_trained(CFG, None, mesh)
    optimizer = make_optimizer(config.trainer.optimizer, params)
    state = abstract_state(CFG, mesh, optimizer)
    where = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = quick_jit(optimizer.update, out_shardings=(where.params, where.opt_state))
    program = step.lower(params, state.opt_state, params).compile()
    grads, values = (jax.device_put(random_params(CFG, seed), where.params) for seed in (1, 0))
    start = jax.jit(optimizer.init, out_shardings=where.opt_state)(values)
    return program(grads, start, values)[0], matmul_flops(program.as_text())


def matmul_flops(hlo: str) -> int:
    """Twice the products of output elements and contracted length over all ``dot``; there are no loops in an update."""
    assert " while(" not in hlo
    shapes = {name: [int(n) for n in dims.split(",")] for name, dims in re.findall(r"(%\S+) = \w+\[([\d,]+)\]", hlo)}
    total = 0
    for out, left, contracted in re.findall(r"(%\S+) = \S+ dot\((%[^,\s]+).*?lhs_contracting_dims=\{(\d+)\}", hlo):
        total += 2 * prod(shapes[out]) * shapes[left][int(contracted)]
    return total


def main(out: str, *meshes: str) -> None:
    arrays, flops = {}, {}
    for name in meshes:
        updates, flops[name] = update_on(name)
        for path, leaf in jax.tree_util.tree_leaves_with_path(updates):
            arrays[name + jax.tree_util.keystr(path)] = np.asarray(leaf)
    np.savez(out, **arrays)
    print(json.dumps(flops))


if __name__ == "__main__":
    main(*sys.argv[1:])
