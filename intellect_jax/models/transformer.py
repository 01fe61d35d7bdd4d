"""The policy: embedding, scanned decoder layers, head; as plain functions of a parameter dict.

NNX modules define the parameters and their logical axes. Outside this file parameters are a nested dict of arrays, with
layers stacked on their first axis: all dense ones in ``dense_layers``, all mixtures of experts in ``moe_layers``. They
are scanned in repeated blocks (see layout.py), so that 46 layers compile as fast as 2.

Shape suffixes: B batch, S sequence, D embed, V vocabulary, L MoE layers, N all layers, K key/value heads, C head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from intellect_jax.models.attention import Attention
from intellect_jax.models.config import ModelConfig
from intellect_jax.models.layers import MLP, Linear, RMSNorm, param, rms_norm
from intellect_jax.models.layout import STACKS, Block, blocks
from intellect_jax.models.moe import MoE
from intellect_jax.models.ops import LOCAL, Ops
from intellect_jax.models.remat import KEEP_ALL, Remat, rematerialised
from intellect_jax.models.rope import rotation

Params = dict[str, Any]


class Forward(NamedTuple):
    hidden: Float[Array, "b s d"]  # after the final norm
    routed_experts: Int[Array, "b s l k"]  # int16


class DecoderLayer(nnx.Module):
    """x + attention(norm x), then x + mlp(norm x), with a dense or a mixture-of-experts MLP."""

    def __init__(self, cfg: ModelConfig, moe: bool, rngs: nnx.Rngs):
        self.input_norm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps, "embed_norm")
        self.attention = Attention(cfg, rngs)
        self.post_norm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps, "embed_norm")
        if moe:
            self.moe = MoE(cfg, rngs)
        else:
            self.mlp = MLP(rngs, cfg.hidden_size, cfg.intermediate_size, cfg.initializer_range)

    def feed_forward(self, x, replay, ops: Ops):
        """The MLP half; expert ids are None in a dense layer."""
        normed = self.post_norm(x)
        if hasattr(self, "mlp"):
            return x + self.mlp(normed, ops.product), None
        y, ids = self.moe(normed, replay, ops)
        return x + y, ids


class Transformer(nnx.Module):
    """Parameters only: the computation is in :func:`forward` and :func:`logits`, or over a cache in paged.py."""

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        std = cfg.initializer_range
        self.embed = nnx.Dict(weight=param(rngs, (cfg.vocab_size, cfg.hidden_size), ("vocab", "embed"), std))
        for moe, count in ((False, cfg.num_dense_layers), (True, cfg.num_moe_layers)):
            if count:
                setattr(self, STACKS[moe], _stacked_layers(cfg, count, moe, rngs))
        self.norm = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps, "embed_norm")
        if not cfg.tie_word_embeddings:
            self.head = Linear(rngs, (cfg.hidden_size, cfg.vocab_size), ("embed", "vocab"), std)


def _stacked_layers(cfg: ModelConfig, count: int, moe: bool, rngs: nnx.Rngs) -> DecoderLayer:
    @nnx.split_rngs(splits=count)
    @nnx.vmap(in_axes=0, out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layers"})
    def build(rngs: nnx.Rngs) -> DecoderLayer:
        return DecoderLayer(cfg, moe, rngs)

    return build(rngs)


@lru_cache(maxsize=16)
def _definition(cfg: ModelConfig) -> tuple[nnx.GraphDef, nnx.State]:
    with nnx.use_eager_sharding(False):  # no mesh yet: the axes are metadata until parallel/ reads them
        return nnx.split(nnx.eval_shape(lambda: Transformer(cfg, nnx.Rngs(0))))


@lru_cache(maxsize=16)
def _layer_definition(cfg: ModelConfig, moe: bool) -> tuple[nnx.GraphDef, nnx.State]:
    with nnx.use_eager_sharding(False):
        return nnx.split(nnx.eval_shape(lambda: DecoderLayer(cfg, moe, nnx.Rngs(0))))


def build_layer(cfg: ModelConfig, moe: bool, params: Params) -> DecoderLayer:
    graphdef, state = _layer_definition(cfg, moe)
    layer = nnx.merge(graphdef, _filled(state, params))
    _attach_adapters(layer, params)
    return layer


def _attach_adapters(module: nnx.Module, params: Params) -> None:
    """Gives every module the factors that lie below ``lora`` beside its parameters (see lora.py)."""
    for name, value in params.items():
        if name == "lora":
            factors = {factor: nnx.Param(array) for factor, array in value.items()}
            module.lora = nnx.Dict(factors)  # type: ignore[attr-defined]
        elif isinstance(value, dict):
            _attach_adapters(getattr(module, name), value)


def _filled(state: nnx.State, params: Params) -> nnx.State:
    return nnx.map_state(lambda path, leaf: leaf.replace(_at(params, path)), state)


def _at(tree: Any, path: tuple) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def init_params(cfg: ModelConfig, seed: int) -> Params:
    """Fresh float32 parameters: normal(0, initializer_range), norms 1, biases 0."""
    return _init(cfg, jax.random.key(seed))


@partial(jax.jit, static_argnums=0)
def _init(cfg: ModelConfig, key: Array) -> Params:
    with nnx.use_eager_sharding(False):
        return nnx.to_pure_dict(nnx.state(Transformer(cfg, nnx.Rngs(params=key))))


def abstract_params(cfg: ModelConfig) -> Params:
    """The parameter tree as jax.ShapeDtypeStruct."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), nnx.to_pure_dict(_definition(cfg)[1]))


def param_axes(cfg: ModelConfig) -> Params:
    """The parameter tree with a tuple of logical axis names for each array."""
    specs = nnx.to_pure_dict(nnx.get_partition_spec(_definition(cfg)[1]))
    return jax.tree.map(tuple, specs, is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec))


def forward(
    params: Params,
    cfg: ModelConfig,
    tokens: Int[Array, "b s"],
    positions: Int[Array, "b s"],
    segment_ids: Int[Array, "b s"],
    *,
    compute_dtype: jnp.dtype = jnp.float32,
    replay: Int[Array, "b s l k"] | None = None,
    remat: Remat = KEEP_ALL,
    ops: Ops = LOCAL,
) -> Forward:
    """Runs packed rows. ``replay`` fixes each token's experts where it is not -1."""
    table = ops.constrain(params["embed"]["weight"].astype(compute_dtype), "vocab", None)
    x = ops.constrain(table[tokens], "rows", "sequence", None)
    layer = partial(_packed_layer, cfg, ops, *rotation(positions, cfg), segment_ids, positions)
    run = rematerialised(layer, remat)
    per_layer = None if replay is None else jnp.moveaxis(replay, 2, 0)
    ids = []
    for block in blocks(cfg):
        body = partial(_packed_block, run, block.kinds)
        straight = (
            block.repeats * len(block.kinds) <= ops.unrolled and remat == KEEP_ALL
        )  # without a loop XLA would not recompute
        share = scanned_share(params, per_layer, block)
        x, block_ids = jax.lax.scan(body, x, share, length=block.repeats, unroll=straight)
        ids += [in_order(block_ids)] if block_ids else []
    hidden = rms_norm(x, params["norm"]["scale"], cfg.rms_norm_eps)
    return Forward(hidden, routed_experts(ids, cfg, tokens.shape))


def _packed_block(run, kinds, x, scanned):
    """The layers ``kinds`` once; expert ids of the MoE layers."""
    stacks, replay = scanned
    ids = []
    for moe, params, at in members(kinds, stacks):
        x, layer_ids = run(moe, params, x, replay[at] if moe and replay is not None else None)
        ids += [layer_ids] if moe else []
    return x, ids


def _packed_layer(cfg, ops, cos, sin, segment_ids, positions, moe, params, x, replay):
    layer, x = build_layer(cfg, moe, params), checkpoint_name(x, "layer")
    attended = layer.attention.packed(layer.input_norm(x), cos, sin, segment_ids, positions, ops)
    x, ids = layer.feed_forward(checkpoint_name(x + attended, "residual"), replay, ops)
    return ops.constrain(x, "rows", "sequence", None), ids


def scanned_share(params: Params, per_moe_layer: Array | None, block: Block) -> tuple[dict[bool, Params], Array | None]:
    """The block's share of the stacks, and of what each MoE layer gets, as [repeats, layers of the kind, ...]."""

    def share(stacked: Array, moe: bool) -> Array:
        each, start = block.kinds.count(moe), block.offsets[moe]
        return stacked[start : start + block.repeats * each].reshape(block.repeats, each, *stacked.shape[1:])

    stacks = {moe: jax.tree.map(partial(share, moe=moe), params[STACKS[moe]]) for moe in sorted(set(block.kinds))}
    return stacks, None if per_moe_layer is None else share(per_moe_layer, True)


def members(kinds: tuple[bool, ...], stacks: dict[bool, Params]) -> Iterator[tuple[bool, Params, int]]:
    """(is it MoE, parameters, index among its kind) of every layer of one repetition."""
    for i, moe in enumerate(kinds):
        at = kinds[:i].count(moe)
        yield moe, jax.tree.map(itemgetter(at), stacks[moe]), at


def in_order(arrays: Sequence[Array]) -> Array:
    """Each [repeats, ...], one for every layer of a block → [layers, ...] in the order of the layers."""
    stacked = jnp.stack(arrays, axis=1)
    return stacked.reshape(-1, *stacked.shape[2:])


def routed_experts(ids: list[Array], cfg: ModelConfig, shape: tuple[int, ...]) -> Array:
    """Expert ids [*shape, L, K] of blocks [L, *shape, K]."""
    none = jnp.zeros((0, *shape, cfg.num_experts_per_tok), jnp.int16)
    return jnp.moveaxis(jnp.concatenate([none, *ids]), 0, len(shape))


def logits(params: Params, cfg: ModelConfig, hidden: Float[Array, "... d"]) -> Float[Array, "... v"]:
    """Float32 logits of final hidden states."""
    kernel = head_kernel(params, cfg).astype(hidden.dtype)
    return jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)


def head_kernel(params: Params, cfg: ModelConfig) -> Float[Array, "d v"]:
    return params["embed"]["weight"].T if cfg.tie_word_embeddings else params["head"]["kernel"]
