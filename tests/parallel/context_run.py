"""For test_context.py: attention on meshes of 8 fake devices against one device; prints the largest relative errors."""

from __future__ import annotations

import json
import sys
from functools import partial

import jax
import numpy as np

from intellect_jax.config import default_config
from intellect_jax.kernels.attention import packed_attention
from intellect_jax.parallel.attention import make_attention
from intellect_jax.parallel.context import zigzag
from intellect_jax.parallel.mesh import make_mesh, sharding
from tests.kernels.attention_cases import Case, output_and_gradients, packed_case
from tests.policies import quick_jit, relative_error

MESHES = {
    "context8": {"context": 8},
    "context4_fsdp2": {"context": 4, "fsdp": 2},
    "context2_tensor2_fsdp2": {"context": 2, "tensor": 2, "fsdp": 2},
    "expert2_context4": {"expert": 2, "context": 4},
    "fsdp4_tensor2": {"fsdp": 4, "tensor": 2},
}


def shuffled(axes: dict[str, int], strategy: str, inverse: bool = False):
    """The row's order where the mesh lays it out in zig-zag."""
    if strategy != "ring":
        return lambda x: x
    return partial(zigzag.unshuffle if inverse else zigzag.shuffle, shards=axes.get("context", 1))


def error_on_mesh(axes: dict[str, int], strategy: str, case: Case, expected) -> float:
    config = default_config()
    config.parallel.update({"fsdp": 1, **axes, "context_strategy": strategy})
    mesh = make_mesh(config.parallel)
    function = quick_jit(partial(output_and_gradients, make_attention(config, mesh)))
    heads, tokens = sharding(mesh, "rows", "sequence", "heads", None), sharding(mesh, "rows", "sequence")
    there = shuffled(axes, strategy)
    placed = Case(*(jax.device_put(there(x), heads if x.ndim == 4 else tokens) for x in case))
    back = shuffled(axes, strategy, inverse=True)
    found = jax.tree.map(lambda x: back(np.asarray(x)), function(placed))
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return max(relative_error(a, b) for a, b in pairs)


def main(*meshes: str) -> None:
    case = packed_case(4, 320, 8, 2, 12, 6)
    expected = quick_jit(partial(output_and_gradients, packed_attention))(case)
    for name in meshes:
        for strategy in ("ring", "ulysses"):
            print(json.dumps([name, strategy, error_on_mesh(MESHES[name], strategy, case, expected)]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
