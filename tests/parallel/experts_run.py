"""Compares expert-parallel strategies with one device on a mesh of fake devices; run by test_experts.py in a process.

python experts_run.py CASE...: prints, as JSON, by case and routing the relative L2 error of the output and of each
gradient. A case is <mesh>/<strategy>[/lora][/nan][/replay][/collectives], see MESHES and STRATEGIES; with nan, buffers
that overflow give not a number instead of falling back.
"""

import json
import sys
from collections.abc import Iterator
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from intellect_jax.config import default_config
from intellect_jax.kernels.grouped_matmul import LowRank, expert_mlp_reference
from intellect_jax.models.ops import LOCAL
from intellect_jax.models.transformer import forward, param_axes
from intellect_jax.parallel.axes import AXES
from intellect_jax.parallel.experts import make_experts, ragged
from intellect_jax.parallel.mesh import make_mesh, sharding, tree_shardings
from intellect_jax.parallel.ops import make_ops
from tests.parallel.collectives import collectives
from tests.policies import SMALL, quick_jit, random_params, relative_error

B, S, D, F, E, K, R = 8, 6, 16, 12, 8, 3, 4
MESHES = {
    "fsdp": {"data": 2, "fsdp": 4},
    "expert": {"expert": 8},
    "expert_fsdp": {"expert": 4, "fsdp": 2},
    "expert_tensor": {"expert": 2, "tensor": 2, "data": 2},
    "expert_context": {"expert": 4, "context": 2},
    "fsdp_tensor": {"fsdp": 4, "tensor": 2},
    "all": {"fsdp": 2, "expert": 2, "tensor": 2},
}
STRATEGIES = {  # strategy, capacity, chunks
    "local": ("auto", 0.0, 1),
    "ring": ("ring", 0.0, 1),
    "ring_chunks": ("ring", 0.0, 4),
    "ring_bounded": ("ring", 1.5, 1),
    "ragged": ("ragged", 0.0, 1),
    "ragged_bounded": ("ragged", 1.5, 1),
    "ragged_chunks": ("ragged", 2.0, 4),
}


def routings() -> Iterator[tuple[str, np.ndarray]]:
    rng = np.random.default_rng(1)

    def top(scores):
        return np.argsort(-scores, axis=-1)[..., :K].astype(np.int32)

    noise = rng.normal(size=(B, S, E))
    yield "even", ((np.arange(B * S).reshape(B, S, 1) + np.arange(K)) % E).astype(np.int32)
    yield "random", top(noise)
    yield "skewed", top(noise - 0.7 * np.arange(E))
    yield "some_without", top(noise - 100.0 * (np.arange(E) % 3 == 1))
    yield "few", top(noise * 0 - np.arange(E)[::-1])  # every token on the last K experts
    yield "one", np.full((B, S, K), 2, np.int32)


def arrays(low_rank: bool):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    weights = jax.nn.softmax(normal(B, S, K))
    kernels = (normal(E, D, F), normal(E, D, F), normal(E, F, D))
    factors = LowRank(normal(E, D, R), normal(E, R, F), normal(E, R, F), normal(E, F, R), normal(E, R, D))
    return (normal(B, S, D), weights, *kernels, factors if low_rank else None), normal(B, S, D)


def one_device(x, ids, weights, gate, up, down, low_rank):
    if low_rank is not None:
        gate, up = gate + low_rank.gate_up_a @ low_rank.gate_b, up + low_rank.gate_up_a @ low_rank.up_b
        down = down + low_rank.down_a @ low_rank.down_b
    flat = expert_mlp_reference(x.reshape(-1, D), ids.reshape(-1, K), weights.reshape(-1, K), gate, up, down)
    return flat.reshape(x.shape)


@cache
def with_gradients(experts):
    def loss(operands, ids, cotangent):
        x, *rest = operands
        y = experts(x, ids, *rest)
        return jnp.sum(y * cotangent), y

    return quick_jit(jax.grad(loss, has_aux=True))


reference = with_gradients(one_device)


def not_a_number(_, tokens, fixed, x, weights, kernels):
    return jnp.full_like(x, jnp.nan)


def strategy_case(mesh, parallel, options: list[str]) -> Iterator[tuple[str, dict[str, float]]]:
    """Errors against one device, for every routing."""
    if "nan" in options:  # instead of the fallback: whoever takes it shows
        ragged._in_ring = not_a_number
    mine = with_gradients(make_experts(mesh, parallel))
    operands, cotangent = arrays("lora" in options)
    for name, ids in routings():
        got, expected = (f(operands, jnp.asarray(ids), cotangent) for f in (mine, reference))
        pairs = zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True)
        yield name, {jax.tree_util.keystr(p): relative_error(np.asarray(a), np.asarray(b)) for (p, a), b in pairs}


def replay_case(mesh, config) -> Iterator[tuple[str, dict[str, float]]]:
    """A policy's forward with experts given for some tokens, and without, against one device with those given."""
    rng = np.random.default_rng(0)
    shape = (B, 8)
    tokens = rng.integers(0, SMALL.vocab_size, shape).astype(np.int32)
    positions = np.broadcast_to(np.arange(8, dtype=np.int32), shape)
    order = np.argsort(rng.random((*shape, SMALL.num_moe_layers, SMALL.n_routed_experts)))
    given = order[..., : SMALL.num_experts_per_tok].astype(np.int16)
    given[:, 5:] = -1
    params = jax.device_put(random_params(SMALL), tree_shardings(mesh, param_axes(SMALL)))

    def run(ops, params, given):
        out = quick_jit(lambda p, given: forward(p, SMALL, *batch, replay=given, ops=ops)[:2])(params, given)
        return [np.asarray(x) for x in out]

    batch = (tokens, positions, np.ones_like(tokens))
    expected, expected_ids = run(LOCAL, random_params(SMALL), given)
    for name, replay in (("given", given), ("own", np.full_like(given, -1))):
        hidden, ids = run(make_ops(config, mesh), params, replay)
        followed = np.where(given >= 0, ids == given, ids == expected_ids)
        yield name, {"hidden": relative_error(hidden, expected), "followed": float(followed[given >= 0].mean())}


def collectives_case(mesh, parallel) -> Iterator[tuple[str, list]]:
    """What the compiled forward and backward pass sends, of arguments that lie as parameters and activations do."""

    def place(x, *axes):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(mesh, *axes))

    (x, weights, gate, up, down, _), cotangent = arrays(False)
    wide, tokens = ("expert", "embed", "expert_mlp"), ("rows", "sequence", None)
    kernels = (place(gate, *wide), place(up, *wide), place(down, "expert", "expert_mlp", "embed"))
    ids = jax.ShapeDtypeStruct((B, S, K), jnp.int32, sharding=sharding(mesh, *tokens))
    run = with_gradients(make_experts(mesh, parallel))
    lowered = run.lower((place(x, *tokens), place(weights, *tokens), *kernels, None), ids, place(cotangent, *tokens))
    yield "all", list(collectives(lowered.compile().as_text(), mesh))


def main(cases: list[str]) -> None:
    results = {}
    keys = ("expert_strategy", "expert_capacity", "expert_chunks")
    for case in cases:
        mesh_name, strategy, *options = case.split("/")
        config = default_config()
        settings = dict(zip(keys, STRATEGIES[strategy], strict=True))
        config.parallel.update(dict.fromkeys(AXES, 1) | MESHES[mesh_name] | settings)
        mesh = make_mesh(config.parallel)
        if "replay" in options:
            rows = replay_case(mesh, config)
        elif "collectives" in options:
            rows = collectives_case(mesh, config.parallel)
        else:
            rows = strategy_case(mesh, config.parallel, options)
        results |= {f"{case}:{name}": row for name, row in rows}
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1:])
