"""Mixture-of-experts layers over a mesh: one interface, one file for each way to bring tokens and experts together.

Mesh axes inside the shard_map: rows of the batch lie over ``data``, ``fsdp`` and ``expert``, sequence over ``context``;
experts lie over ``expert``, their input width over ``fsdp`` (gathered here, so that its gradient is scattered: ZeRO-3,
Rajbhandari et al., arXiv 1910.02054), their own width over ``tensor`` (partial sums: Megatron, arXiv 1909.08053).

Shape suffixes: B batch, S sequence, T = B S tokens of a shard, K experts per token, E experts, D embed, F expert width.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from intellect_jax.kernels.grouped_matmul import LowRank
from intellect_jax.parallel.experts.local import local_experts
from intellect_jax.parallel.experts.ragged import ragged_experts
from intellect_jax.parallel.experts.ring import ring_experts
from intellect_jax.parallel.experts.shard import Kernels, Shard, expected_share
from intellect_jax.parallel.mesh import sharding

log = logging.getLogger(__name__)

STRATEGIES: dict[str, Callable[[Shard, Array, Array, Array, Kernels], Array]] = {
    "local": local_experts,
    "ring": ring_experts,
    "ragged": ragged_experts,
    "padded": ragged_experts,
}
_WIDE, _NARROW = ("expert", "embed", "expert_mlp"), ("expert", "expert_mlp", "embed")
_AXES: dict[str, tuple[str | None, ...]] = {  # as models.transformer.param_axes and models.lora.adapter_axes have them
    "gate": _WIDE,
    "up": _WIDE,
    "down": _NARROW,
    "gate_up_a": ("expert", "embed", None),
    "gate_b": ("expert", None, "expert_mlp"),
    "up_b": ("expert", None, "expert_mlp"),
    "down_a": ("expert", "expert_mlp", None),
    "down_b": ("expert", None, "embed"),
}


@dataclass(frozen=True)
class Experts:
    """``Ops.experts`` on a mesh; hashable, so that equal ones share a compiled step. See ``config.parallel``."""

    mesh: Mesh
    strategy: str  # auto or one of STRATEGIES
    capacity: float
    chunks: int

    def __call__(
        self,
        x: Float[Array, "b s d"],
        ids: Int[Array, "b s k"],
        weights: Float[Array, "b s k"],
        gate: Float[Array, "e d f"],
        up: Float[Array, "e d f"],
        down: Float[Array, "e f d"],
        low_rank: LowRank | None = None,
    ) -> Float[Array, "b s d"]:
        """Weighted sum of the chosen experts' outputs; exact and without drops for any routing."""
        kernels = Kernels(gate, up, down, low_rank)
        tokens = sharding(self.mesh, "rows", "sequence", None).spec
        places = _by_axes(lambda axes, _: sharding(self.mesh, *axes).spec, kernels)
        # The sum over the tensor axis stays outside: a psum in here would be transposed to a second psum.
        run = jax.shard_map(
            partial(_on_shard, self),
            mesh=self.mesh,
            in_specs=(tokens, tokens, tokens, places),
            out_specs=PartitionSpec("tensor", *tokens),
            check_vma=False,  # kernels of other libraries say nothing about the axes over which they vary
        )
        partial_sums = run(x, ids, weights, kernels)
        return jax.lax.reduce_sum(partial_sums, (0,))  # jnp.sum would send bfloat16 as float32


def make_experts(mesh: Mesh, parallel: ConfigDict) -> Experts:
    """The experts' computation on ``mesh``, as the ``parallel`` section asks."""
    strategy = parallel.expert_strategy if mesh.shape["expert"] > 1 else "local"
    flags = os.environ.get("XLA_FLAGS", "")
    if strategy == "ragged" and _platform(mesh) == "gpu" and "enable_ragged_all_to_all_decomposer=true" not in flags:
        log.warning("parallel.expert_strategy=ragged: XLA's ragged exchange on GPUs has given wrong gradients; see "
                    "parallel/experts/exchange.py, or choose padded")  # fmt: skip
    return Experts(mesh, strategy, float(parallel.expert_capacity), parallel.expert_chunks)


def best_strategy(ways: int, experts_per_token: int, capacity: float, platform: str) -> str:
    """An exchange where it sends less than two thirds of what the ring sends: ragged on TPUs, padded on GPUs (see
    exchange.py); a CPU has nothing to gain by it.

    The ring sends every token to every shard, in equal parts that overlap with compute; two thirds leave something
    for that. By count, not by clock.
    """
    share = expected_share(ways, experts_per_token)
    if platform == "tpu" and share < 2 / 3:
        return "ragged"
    return "padded" if platform == "gpu" and 0 < capacity * share < 2 / 3 else "ring"


def _on_shard(experts: Experts, x: Array, ids: Array, weights: Array, kernels: Kernels) -> Array:
    """One device's part: [b s d] in, [1 b s d] out, to be summed over the tensor axis."""
    b, s, d = x.shape
    ways, platform = experts.mesh.shape["expert"], _platform(experts.mesh)
    strategy = experts.strategy
    if strategy == "auto":
        strategy = best_strategy(ways, ids.shape[-1], experts.capacity, platform)
    ragged = strategy == "ragged" and platform != "cpu"
    shard = Shard(ways, kernels.gate.shape[0], experts.capacity, tuple(experts.mesh.axis_names), ragged)
    tokens = (x.reshape(-1, d), ids.reshape(b * s, -1), weights.reshape(b * s, -1))
    compute = partial(STRATEGIES[strategy], shard)
    chunks = 1 if strategy == "local" else min(experts.chunks, b * s)
    # Gathered weights are never kept for the backward pass, which gathers them again.
    run = jax.checkpoint(partial(_chunked, compute, chunks), prevent_cse=False, policy=_but_gathered)
    return run(*tokens, kernels).reshape(1, b, s, d)


def _platform(mesh: Mesh) -> str:
    return mesh.devices.flat[0].platform


def _chunked(compute: Callable[..., Array], chunks: int, x, ids, weights, kernels: Kernels) -> Array:
    """``compute`` on parts of the tokens, unrolled: nothing ties one part to another, so that the scheduler may run the
    collectives of one while another computes."""
    kernels = _by_axes(_gathered, kernels)
    bounds = [i * x.shape[0] // chunks for i in range(chunks + 1)]
    parts = [compute(x[i:j], ids[i:j], weights[i:j], kernels) for i, j in pairwise(bounds)]
    return jnp.concatenate(parts)


def _gathered(axes: tuple[str | None, ...], kernel: Array) -> Array:
    if "embed" not in axes:
        return kernel
    return jax.lax.all_gather(kernel, "fsdp", axis=axes.index("embed"), tiled=True)


def _but_gathered(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name != "all_gather"


def _by_axes(function: Callable[[tuple[str | None, ...], Array], Any], kernels: Kernels) -> Any:
    """``function`` of each kernel and its logical axes."""
    return jax.tree_util.tree_map_with_path(lambda path, kernel: function(_AXES[path[-1].name], kernel), kernels)
