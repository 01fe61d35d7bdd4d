"""Mesh axes as numbers: their names, what they shard, their sizes. No jax, so that a misfit is told before any start.

``data`` replicas of the sharded groups, ``fsdp`` parameters and batch rows, ``expert`` experts, ``context`` sequence,
``tensor`` heads, MLP width and vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import lcm, prod

from ml_collections import ConfigDict

from intellect_jax.errors import UserError
from intellect_jax.models.config import ModelConfig

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
        asked = {axis: int(parallel[axis]) for axis in AXES}
        raise UserError(f"parallel: axes {asked} do not multiply to {devices} device{'s' * (devices != 1)}")
    return sizes


def refuse_uneven(sizes: dict[str, int], config: ConfigDict, cfg: ModelConfig) -> None:
    """Raises UserError for the first length that its mesh axes do not divide: XLA shards evenly or not at all."""
    for name, axis, length in _sharded_lengths(config, cfg):
        rule = RULES[axis]
        over = (rule,) if isinstance(rule, str) else rule or ()
        ways = prod(sizes[each] for each in over)
        if length % ways:
            where = " x ".join(f"parallel.{each}={sizes[each]}" for each in over)
            raise UserError(f"{name}={length}: must be a multiple of {ways} to be sharded over {where}")
    if sizes["context"] > 1:
        _refuse_context(sizes, config, cfg)


def _refuse_context(sizes: dict[str, int], config: ConfigDict, cfg: ModelConfig) -> None:
    """Raises UserError for what the strategy of the context axis cannot split."""
    shards, strategy = sizes["context"], config.parallel.context_strategy
    where = f"parallel.context={shards} by {strategy}"
    if strategy == "ulysses":
        heads, kv_heads = (n // sizes["tensor"] for n in (cfg.num_attention_heads, cfg.num_key_value_heads))
        ways = lcm(kv_heads, shards)
        if heads % ways:
            raise UserError(
                f"model.num_attention_heads={cfg.num_attention_heads}: a device of parallel.tensor={sizes['tensor']}"
                f" holds {heads}, which must be a multiple of {ways} for {where}; or set context_strategy to ring"
            )
        return
    for length in config.trainer.seq_buckets:
        if length % (2 * shards):
            raise UserError(f"trainer.seq_buckets={length}: must be a multiple of {2 * shards} for {where}")


def _sharded_lengths(config: ConfigDict, cfg: ModelConfig) -> Iterator[tuple[str, str, int]]:
    """(key, logical axis, length) of every array dimension that a mesh axis may shard."""
    yield "trainer.rows", "rows", config.trainer.rows
    for length in config.trainer.seq_buckets:
        yield "trainer.seq_buckets", "sequence", length
    yield "model.hidden_size", "embed", cfg.hidden_size
    yield "model.vocab_size", "vocab", cfg.vocab_size
    yield "model.num_attention_heads", "heads", cfg.num_attention_heads
    yield "model.num_key_value_heads", "kv_heads", cfg.num_key_value_heads
    if cfg.num_dense_layers:
        yield "model.intermediate_size", "mlp", cfg.intermediate_size
    if cfg.num_moe_layers:
        yield "model.n_routed_experts", "expert", cfg.n_routed_experts
        yield "model.moe_intermediate_size", "expert_mlp", cfg.moe_intermediate_size
