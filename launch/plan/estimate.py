"""Memory and time of a step by arithmetic alone: ranks meshes before any is compiled, and stands in for a compiler.

Numbers of one device. Activations are bfloat16; kernels that never hold scores or logits of a whole row are assumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from ml_collections import ConfigDict

from intellect_jax.config import published_copies
from intellect_jax.models.config import ModelConfig
from intellect_jax.models.lora_shape import Lora
from intellect_jax.parallel.axes import AXES
from launch import estimates
from launch.plan.model_flops import Batch, step_flops
from launch.plan.roofline import Roofline, Traffic, roofline
from launch.plan.targets import Target

ACT, MASTER = 2, 4  # bytes of activations and gathered weights, of masters and gradients
_ATTENTION, _MLP = ("projections", "attention"), ("dense_mlp", "router", "shared_experts", "routed_experts")
_HEAD_CHUNK = 2048  # tokens whose logits exist at once


@dataclass(frozen=True)
class Shape:
    """What an estimate is of. ``moments``: bytes that an optimizer keeps on the device for one trained parameter."""

    cfg: ModelConfig
    batch: Batch
    mesh: Mapping[str, int]
    remat: str  # as ``trainer.remat``
    lora: Lora | None = None
    moments: float = 8.0
    published: int = 0  # versions that stay on the devices: to find what changes, and for NCCL

    @classmethod
    def of(cls, config: ConfigDict, cfg: ModelConfig, batch: Batch, mesh: Mapping[str, int], remat: str) -> Shape:
        """With the optimizer and adapters of a configuration."""
        optimizer = config.trainer.optimizer
        moments = estimates.BYTES[optimizer.moments_dtype] * (1 if optimizer.name == "muon" else 2)
        on_device = 0 if optimizer.offload else moments
        return cls(cfg, batch, mesh, remat, Lora.from_config(config.lora), on_device, published_copies(config))

    @property
    def tokens(self) -> float:
        """Of one device in one microbatch."""
        ways = prod(self.mesh[axis] for axis in ("data", "fsdp", "expert", "context"))
        return self.batch.rows * self.batch.length / ways

    @property
    def weights(self) -> tuple[float, float]:
        """Parameters outside and inside of routed experts."""
        cfg = self.cfg
        experts = 3.0 * cfg.num_moe_layers * cfg.n_routed_experts * cfg.hidden_size * cfg.moe_intermediate_size
        return _parameters(cfg) - experts, experts

    def shard(self, dense: float, experts: float) -> float:
        """Parameters that one device holds of these."""
        mesh = self.mesh
        return (dense + experts / mesh["expert"]) / (mesh["fsdp"] * mesh["tensor"])


@lru_cache(maxsize=16)
def _parameters(cfg: ModelConfig) -> int:
    return estimates.parameter_count(cfg)


def memory(shape: Shape) -> dict[str, float]:
    """Bytes by kind (see memory.KINDS)."""
    held = shape.shard(*shape.weights)
    trained = held
    if shape.lora:
        trained = estimates.adapter_count(shape.cfg, shape.lora) / (shape.mesh["fsdp"] * shape.mesh["tensor"])
    return {
        "parameters": MASTER * trained + (ACT * held if shape.lora else 0),
        "optimizer": shape.moments * trained,
        "published": ACT * held * shape.published,
        "gradients": MASTER * trained,
        "activations": activations(shape),
        "temporaries": temporaries(shape),
        "batch": 50.0 * shape.tokens * shape.batch.microbatches,
        "code": 0.0,
    }


def activations(shape: Shape) -> float:
    """What all layers of one microbatch keep."""
    kept = {"full": kept_full, "attention": kept_attention, "matmuls": kept_matmuls, "none": kept_none}[shape.remat]
    cfg = shape.cfg
    layers = cfg.num_dense_layers * kept(shape, False) + cfg.num_moe_layers * kept(shape, True)
    return shape.tokens * ACT * layers


def kept_full(shape: Shape, moe: bool) -> float:
    """Numbers a token: a layer's input."""
    return shape.cfg.hidden_size


def kept_attention(shape: Shape, moe: bool) -> float:
    """A layer's input and what its attention half makes."""
    return 2 * shape.cfg.hidden_size + _attention(shape)


def kept_matmuls(shape: Shape, moe: bool) -> float:
    """Besides, what the MLP's products make."""
    return kept_attention(shape, moe) + _mlp(shape, moe, 2)


def kept_none(shape: Shape, moe: bool) -> float:
    """Everything that a gradient needs."""
    return 4 * shape.cfg.hidden_size + 2 * _attention(shape) + _mlp(shape, moe, 3)


def _mlp(shape: Shape, moe: bool, widths: int) -> float:
    """``widths`` arrays of an MLP's width, and of routed rows what goes in and comes out."""
    cfg, tensor = shape.cfg, shape.mesh["tensor"]
    if not moe:
        return widths * cfg.intermediate_size / tensor
    routed = cfg.num_experts_per_tok * (widths * cfg.moe_intermediate_size / tensor + 2 * cfg.hidden_size)
    return routed + widths * cfg.n_shared_experts * cfg.moe_intermediate_size / tensor


def _attention(shape: Shape) -> float:
    """Queries, keys, values and the output."""
    return (
        2 * (shape.cfg.num_attention_heads + shape.cfg.num_key_value_heads) * shape.cfg.head_dim / shape.mesh["tensor"]
    )


def temporaries(shape: Shape) -> float:
    """At the worst moment of the backward pass: a layer's weights gathered, their gradient not yet scattered, what the
    layer keeps (recomputed) with its gradient; or the logits of a chunk."""
    cfg, mesh = shape.cfg, shape.mesh
    moe = cfg.num_moe_layers > 0
    dense, experts = shape.weights
    head = cfg.hidden_size * cfg.vocab_size / mesh["tensor"]
    layer = (dense - 2 * head * mesh["tensor"]) / cfg.num_hidden_layers / mesh["tensor"]
    if moe:
        layer += experts / cfg.num_moe_layers / (mesh["expert"] * mesh["tensor"])
    inside = (2 * ACT + MASTER) * layer + 2 * ACT * shape.tokens * kept_none(shape, moe)
    logits = (ACT + MASTER) * head + 2 * MASTER * min(_HEAD_CHUNK, shape.tokens) * cfg.vocab_size / mesh["tensor"]
    return max(inside, logits)


def bound(shape: Shape, target: Target) -> Roofline:
    """Roofline of the estimated FLOPs and collectives."""
    devices, batch = prod(shape.mesh.values()), shape.batch
    parts = step_flops(shape.cfg, batch, frozen=shape.lora is not None)
    model = sum(parts.values())
    halves = {"full": _ATTENTION + _MLP, "attention": _MLP}.get(shape.remat, ())  # computed again
    again = sum(parts[part] for part in halves) / 3
    executed = {"bf16": (model + again) / devices}
    held = shape.shard(*shape.weights)
    passes = 2 + (shape.remat == "full")
    moved = (
        batch.microbatches * (passes * ACT * held * shape.mesh["fsdp"] + 10 * activations(shape)) + 7 * MASTER * held
    )
    return roofline(target, executed, moved, list(collectives(shape, target.per_node)), model, devices)


def collectives(shape: Shape, per_node: int) -> Iterator[Traffic]:
    """Of one step: weights gathered and gradients scattered over fsdp, tokens to experts and back, keys and values
    around the context ring, partial sums over tensor."""
    cfg, mesh, times, layers = shape.cfg, shape.mesh, shape.batch.microbatches, shape.cfg.num_hidden_layers
    passes = 2 + (shape.remat == "full")  # forward, backward, and forward again
    gathered = shape.shard(*shape.weights) * mesh["fsdp"]
    frozen = shape.lora is not None
    activation = shape.tokens * cfg.hidden_size * ACT
    if not frozen:
        yield _along("data", "all-reduce", MASTER * gathered / mesh["fsdp"], 1, mesh, per_node)
        yield _along("fsdp", "reduce-scatter", MASTER * gathered, times, mesh, per_node)
    yield _along("fsdp", "all-gather", ACT * gathered, 2 * times, mesh, per_node)
    yield _along(
        "expert", "all-gather", activation * mesh["expert"], passes * times * cfg.num_moe_layers, mesh, per_node
    )
    yield _along(
        "expert", "reduce-scatter", activation * mesh["expert"], passes * times * cfg.num_moe_layers, mesh, per_node
    )
    keys = 2 * shape.tokens * cfg.num_key_value_heads * cfg.head_dim * ACT / mesh["tensor"]
    hops = (passes + 1) * (mesh["context"] - 1) * times * layers  # backward sends gradients along
    yield _along("context", "collective-permute", keys, hops, mesh, per_node)
    yield _along("tensor", "all-reduce", activation, 2 * passes * times * layers, mesh, per_node)


def _along(axis: str, kind: str, size: float, executions: int, mesh: Mapping[str, int], per_node: int) -> Traffic:
    inner = prod(mesh[each] for each in AXES[AXES.index(axis) + 1 :])
    nodes = len({place * inner // per_node for place in range(mesh[axis])})
    used = executions if mesh[axis] > 1 else 0
    return Traffic(kind, size, used, (axis,), max(1, mesh[axis] // nodes), nodes)
