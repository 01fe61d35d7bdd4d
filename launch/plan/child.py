"""What ``compile`` runs in a process of its own: ``python -m launch.plan.child REQUEST.json RESULT.json``."""

from __future__ import annotations

import json
import re
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from intellect_jax.bridge.huggingface import load_config
from intellect_jax.config import from_plain, published_copies
from intellect_jax.files import write_json
from intellect_jax.models.config import ModelConfig
from intellect_jax.models.lora_shape import Lora
from intellect_jax.models.transformer import abstract_params, param_axes
from intellect_jax.parallel.axes import refuse_uneven
from intellect_jax.parallel.mesh import make_mesh, tree_shardings
from intellect_jax.trainer import setup
from launch.plan import cost, hlo, jaxpr
from launch.plan.compile import Compiled, Request
from launch.plan.groups import span
from launch.plan.kept import kept_bytes
from launch.plan.roofline import Traffic
from launch.plan.targets import TARGETS, Target, gpu_description, topology

# Machine code of the CPU stands in for another: how fast it would be does not matter, how fast it is made does.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
_FULL = re.compile(r"RESOURCE_EXHAUSTED|Ran out of memory|exceed(?:ed|s) .*memory", re.IGNORECASE)


def main(request_file: str, result_file: str) -> int:
    request = Request(**json.loads(Path(request_file).read_text()))
    write_json(Path(result_file), asdict(compile_request(request)))
    return 0


def compile_request(request: Request) -> Compiled:
    """Traces, lowers, compiles and counts. Parameters and batches stay abstract: nothing is allocated."""
    config, target = from_plain(request.config), TARGETS[request.target]
    cfg = policy_shape(config, request.vocab_size)
    devices = target_devices(target, request.compiler, request.devices)
    mesh = make_mesh(config.parallel, devices)
    refuse_uneven(dict(mesh.shape), config, cfg)
    shape = (max(config.trainer.microbatch_buckets), config.trainer.rows, max(config.trainer.seq_buckets))
    versions = {name: version(name) for name in ("jax", "jaxlib")}
    compiled = Compiled(request.compiler, versions, dict(mesh.shape), list(shape))
    optimizer, state = setup.optimizer_and_state(config, cfg, mesh)
    rate = jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    base = frozen_base(cfg, mesh) if Lora.from_config(config.lora) else None
    arguments = (state, setup.batch_specs(config, cfg, mesh, shape), rate, base)
    compiled.state = state_bytes(*arguments)
    if copies := published_copies(config):
        compiled.state["published"] = copies * compiled.state["gradients"] / 2  # the parameters in bfloat16
    start = time.monotonic()
    with jax.default_device(devices[0]):  # kernels that ask which device they are for
        traced = setup.jit_step(config, cfg, mesh, optimizer, state).trace(*arguments)
    compiled.traced_flops = jaxpr.matmul_flops(traced.jaxpr)
    lowered = traced.lower(lowering_platforms=(request.compiler,))
    compiled.trace_seconds = time.monotonic() - start
    program = _compile(lowered, compiled)
    if program is not None:
        per_node = target.per_node if target.compiler == "cuda" else request.devices
        _read(program, compiled, mesh, per_node, jaxpr.kernel_flops(traced.jaxpr), _shard_shapes(state.params))
    compiled.peak_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    return compiled


def target_devices(target: Target, compiler: str, count: int) -> list[Any]:
    """Devices of the target, which need not be there; those of the CPU stand in where its compiler is not."""
    if compiler == "cpu":
        return jax.devices()[:count]
    name = topology(target, count)
    if compiler == "tpu":
        return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    description = gpu_description(target)
    return topologies.get_topology_desc(platform="cuda", target_config=description, topology=name).devices


def policy_shape(config: ConfigDict, vocab_size: int) -> ModelConfig:
    return load_config(config.model.path) if config.model.path else ModelConfig.from_config(config.model, vocab_size)


def frozen_base(cfg: ModelConfig, mesh: Mesh) -> Any:
    """LoRA's frozen parameters, counted as bfloat16: what they are of a checkpoint that stores them so."""
    shapes, shardings = abstract_params(cfg), tree_shardings(mesh, param_axes(cfg))
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16, sharding=where), shapes, shardings
    )


def state_bytes(state: Any, batch: Any, rate: Any, base: Any) -> dict[str, float]:
    """Bytes on one device by kind, and of what lies in its host's memory instead, as ``<kind>_host``."""
    kinds = {"parameters": (state.params, base), "optimizer": state.opt_state, "batch": batch}
    found: Counter[str] = Counter()
    for kind, tree in kinds.items():
        for leaf in jax.tree.leaves(tree):
            host = "_host" if "host" in str(leaf.sharding.memory_kind) else ""
            found[kind + host] += _shard_bytes(leaf)
    found["gradients"] = sum(map(_shard_bytes, jax.tree.leaves(state.params)))
    return {kind: float(size) for kind, size in found.items()}


def _shard_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    return int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize


def _shard_shapes(params: Any) -> set[tuple[int, ...]]:
    return {tuple(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(params)}


def _compile(lowered: Any, compiled: Compiled) -> Any:
    """The program; None where the compiler refuses because it needs more memory than a device has."""
    start = time.monotonic()
    try:
        return lowered.compile(compiler_options=QUICK if compiled.compiler == "cpu" else None)
    except jax.errors.JaxRuntimeError as error:
        if not _FULL.search(str(error)):
            raise
        compiled.refused = " ".join(str(error).split())[:500]
        return None
    finally:
        compiled.compile_seconds = time.monotonic() - start


def _read(
    program: Any,
    compiled: Compiled,
    mesh: Mesh,
    per_node: int,
    kernel_flops: dict[str, float],
    gradients: set[tuple[int, ...]],
) -> None:
    """Fills in what the compiled program tells."""
    sizes = program.memory_analysis()
    compiled.program = {
        "arguments": float(sizes.argument_size_in_bytes),
        "outputs": float(sizes.output_size_in_bytes),
        "aliased": float(sizes.alias_size_in_bytes),
        "temporaries": float(sizes.temp_size_in_bytes),
        "code": float(sizes.generated_code_size_in_bytes),
        "host": float(sizes.host_argument_size_in_bytes + sizes.host_temp_size_in_bytes),
    }
    module = hlo.parse(program.as_text())
    costs = cost.count(module, kernel_flops)
    compiled.flops, compiled.traffic = dict(costs.flops), costs.bytes
    compiled.kernels, compiled.unknown_loops = dict(costs.kernels), costs.unknown_loops
    compiled.kept = kept_bytes(module, gradients)
    compiled.collectives = list(_traffic(costs.collectives.items(), mesh, per_node))


def _traffic(found: Iterable[tuple[cost.Collective, int]], mesh: Mesh, per_node: int) -> Iterable[Traffic]:
    merged: Counter[tuple[Any, ...]] = Counter()
    for each, executions in found:
        where = span(each.groups, dict(mesh.shape), per_node)
        merged[each.kind, each.bytes, where.axes, where.per_node, where.nodes] += executions
    for (kind, size, axes, inside, nodes), executions in merged.items():
        yield Traffic(kind, size, executions, axes, inside, nodes)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
