"""What the tables of tensor names share: one entry ties a Hugging Face tensor to its place in the parameter tree.

Hugging Face stores a linear map as [out, in], one tensor per layer and expert; the parameter tree as [in..., out...],
stacked over layers and experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from intellect_jax.models.config import ModelConfig
from intellect_jax.models.layout import STACKS


@dataclass(frozen=True)
class Entry:
    """``name`` [hf_shape] is ``tree[path][index]`` [shape]; the array at ``path`` is [stack + shape]."""

    name: str
    path: tuple[str, ...]
    index: tuple[int, ...]
    stack: tuple[int, ...]
    shape: tuple[int, ...]
    hf_shape: tuple[int, ...]
    transposed: bool = False
    float32: bool = False  # stored and kept in float32 whatever dtype is asked for

    def to_hf(self, array: np.ndarray) -> np.ndarray:
        """The Hugging Face tensor, a view of the stacked ``array``."""
        part = array[self.index]
        return part.reshape(self.hf_shape[::-1]).T if self.transposed else part.reshape(self.hf_shape)

    def from_hf(self, tensor: np.ndarray) -> np.ndarray:
        """The inverse of :meth:`to_hf`: what belongs at ``array[self.index]``; raises ValueError on another shape."""
        if tensor.shape != self.hf_shape:
            raise ValueError(f"{self.name} has shape {list(tensor.shape)}, the config asks for {list(self.hf_shape)}")
        return (tensor.T if self.transposed else tensor).reshape(self.shape)


@dataclass(frozen=True)
class At:
    """A place in both trees, below which entries are made."""

    prefix: str = ""
    path: tuple[str, ...] = ()
    index: tuple[int, ...] = ()
    stack: tuple[int, ...] = ()

    def below(self, prefix: str, *path: str) -> At:
        return replace(self, prefix=self.prefix + prefix, path=self.path + path)

    def stacked(self, index: int, size: int) -> At:
        """Entry ``index`` of one more leading axis of ``size``."""
        return replace(self, index=(*self.index, index), stack=(*self.stack, size))

    def linear(self, name: str, path: tuple[str, ...], inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Entry:
        """A weight [prod(outputs), prod(inputs)] that is [*inputs, *outputs] in the tree."""
        place = (self.prefix + name, self.path + path, self.index, self.stack)
        return Entry(*place, inputs + outputs, (prod(outputs), prod(inputs)), transposed=True)

    def vector(self, name: str, path: tuple[str, ...], shape: tuple[int, ...], float32: bool = False) -> Entry:
        """A weight [prod(shape)] that is [*shape] in the tree: scales and biases."""
        place = (self.prefix + name, self.path + path, self.index, self.stack)
        return Entry(*place, shape, (prod(shape),), float32=float32)


def decoder(cfg: ModelConfig, moe: Callable[[At, ModelConfig], Iterator[Entry]] | None = None) -> Iterator[Entry]:
    """Every tensor of a decoder whose mixture-of-experts MLPs have the tensors ``moe(at, cfg)``."""
    yield from embeddings(cfg)
    for is_moe, layer in layers(cfg):
        yield from attention(layer, cfg)
        if is_moe:
            assert moe is not None, "a family without mixtures of experts has router='none'"
            yield from moe(layer.below("mlp.", "moe"), cfg)
        else:
            yield from mlp(layer.below("mlp.", "mlp"), cfg.hidden_size, cfg.intermediate_size)


def embeddings(cfg: ModelConfig) -> Iterator[Entry]:
    """Embedding, final norm and, unless tied, the head."""
    rows = (cfg.vocab_size, cfg.hidden_size)
    yield Entry("model.embed_tokens.weight", ("embed", "weight"), (), (), rows, rows)
    yield At().vector("model.norm.weight", ("norm", "scale"), (cfg.hidden_size,))
    if not cfg.tie_word_embeddings:
        yield At().linear("lm_head.weight", ("head", "kernel"), (cfg.hidden_size,), (cfg.vocab_size,))


def layers(cfg: ModelConfig) -> Iterator[tuple[bool, At]]:
    """(is it a MoE layer, its place) for every decoder layer, in order."""
    pattern = cfg.moe_pattern
    for i, moe in enumerate(pattern):
        at = pattern[:i].count(moe)
        yield moe, At(f"model.layers.{i}.").below("", STACKS[moe]).stacked(at, pattern.count(moe))


def attention(at: At, cfg: ModelConfig) -> Iterator[Entry]:
    """Both norms of a layer and its attention; biases and query/key norms where the config has them."""
    embed = (cfg.hidden_size,)
    yield at.vector("input_layernorm.weight", ("input_norm", "scale"), embed)
    yield at.vector("post_attention_layernorm.weight", ("post_norm", "scale"), embed)
    inner = at.below("self_attn.", "attention")
    for side, count in (("q", cfg.num_attention_heads), ("k", cfg.num_key_value_heads), ("v", cfg.num_key_value_heads)):
        heads = (count, cfg.head_dim)
        yield inner.linear(f"{side}_proj.weight", (side, "kernel"), embed, heads)
        if cfg.attention_bias:
            yield inner.vector(f"{side}_proj.bias", (side, "bias"), heads)
        if cfg.use_qk_norm and side != "v":
            yield inner.vector(f"{side}_norm.weight", (f"{side}_norm", "scale"), (cfg.head_dim,))
    yield inner.linear("o_proj.weight", ("o", "kernel"), (cfg.num_attention_heads, cfg.head_dim), embed)
    if cfg.attention_bias and cfg.attention_output_bias:
        yield inner.vector("o_proj.bias", ("o", "bias"), embed)


def mlp(at: At, hidden: int, width: int) -> Iterator[Entry]:
    """gate, up [hidden, width] and down [width, hidden]."""
    for name in ("gate", "up"):
        yield at.linear(f"{name}_proj.weight", (name, "kernel"), (hidden,), (width,))
    yield at.linear("down_proj.weight", ("down", "kernel"), (width,), (hidden,))


def routed_experts(at: At, cfg: ModelConfig) -> Iterator[Entry]:
    """The router's kernel and its experts under per-expert names, as in published checkpoints."""
    hidden, width = (cfg.hidden_size,), (cfg.moe_intermediate_size,)
    yield at.linear("gate.weight", ("router", "kernel"), hidden, (cfg.n_routed_experts,))
    for i in range(cfg.n_routed_experts):
        one = at.below(f"experts.{i}.", "experts").stacked(i, cfg.n_routed_experts)
        yield one.linear("gate_proj.weight", ("gate",), hidden, width)
        yield one.linear("up_proj.weight", ("up",), hidden, width)
        yield one.linear("down_proj.weight", ("down",), width, hidden)
