"""LoRA (Hu et al., arXiv 2106.09685): low-rank adapters beside frozen kernels, y = x W + alpha / rank · (x A) B.

An adapter tree is nested like the parameter tree. For a linear map it holds ``lora.a`` [layers, in..., rank] and
``lora.b`` [layers, rank, out...]; for the routed experts ``lora.gate_up_a`` [layers, E, D, rank], ``lora.gate_b`` and
``lora.up_b`` [layers, E, rank, F], ``lora.down_a`` [layers, E, F, rank] and ``lora.down_b`` [layers, E, rank, D].
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from intellect_jax.models.config import ModelConfig
from intellect_jax.models.lora_shape import Lora, factor_paths, input_axes, is_b, stack_axes
from intellect_jax.models.transformer import Params, abstract_params, param_axes
from intellect_jax.trees import TreePath, nested, path_keys

_STREAM = zlib.crc32(b"lora")  # apart from the stream of the base's fresh weights


class Adapter(NamedTuple):
    """Adapters of a policy: ``factors`` is the tree of A and B, float32."""

    factors: Params
    lora: Lora


class Factor(NamedTuple):
    """Shape and logical axes of an A or B; ``fan_in`` is the length of what A reads."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    fan_in: int


def abstract_adapter(cfg: ModelConfig, lora: Lora) -> Params:
    """The adapter tree as float32 jax.ShapeDtypeStruct."""
    return nested({path: jax.ShapeDtypeStruct(f.shape, jnp.float32) for path, f in _factors(cfg, lora)})


def adapter_axes(cfg: ModelConfig, lora: Lora) -> Params:
    """The adapter tree with a tuple of logical axis names for each array; the rank's has none."""
    return nested({path: factor.axes for path, factor in _factors(cfg, lora)})


def init_adapter(cfg: ModelConfig, lora: Lora, seed: int) -> Params:
    """Fresh float32 factors as PEFT makes them: A uniform within ±1 / sqrt(fan in), B zero, so that nothing changes."""
    return _init(cfg, lora, jax.random.fold_in(jax.random.key(seed), _STREAM))


@partial(jax.jit, static_argnums=(0, 1))
def _init(cfg: ModelConfig, lora: Lora, key: Array) -> Params:
    factors = dict(_factors(cfg, lora))
    keys = dict(zip(sorted(factors), jax.random.split(key, len(factors)), strict=True))

    def fresh(path: TreePath, factor: Factor) -> Array:
        if is_b(path):
            return jnp.zeros(factor.shape, jnp.float32)
        bound = factor.fan_in**-0.5
        return jax.random.uniform(keys[path], factor.shape, jnp.float32, -bound, bound)

    return nested({path: fresh(path, factor) for path, factor in factors.items()})


def with_adapter(base: Params, adapter: Adapter) -> Params:
    """What ``transformer.forward`` takes as parameters: the base with A and alpha / rank · B beside its kernels."""

    def scaled(path: tuple[Any, ...], factor: Array) -> Array:
        return factor * adapter.lora.scale if is_b(path_keys(path)) else factor

    return _union(base, jax.tree_util.tree_map_with_path(scaled, adapter.factors))


def merged(kernel: Array, a: Array, b: Array, lora: Lora, batch_axes: int) -> Array:
    """W + alpha / rank · A B in float32, of arrays whose first ``batch_axes`` axes are repetitions."""
    product = partial(jnp.tensordot, axes=1, precision=jax.lax.Precision.HIGHEST)
    for _ in range(batch_axes):
        product = jax.vmap(product)
    return kernel.astype(jnp.float32) + lora.scale * product(a, b)


def _factors(cfg: ModelConfig, lora: Lora) -> Iterator[tuple[TreePath, Factor]]:
    """Path, shape and axes of every factor. Gate and up of the experts name the A that they share twice."""
    axes = {path_keys(path): names for path, names in _leaves(param_axes(cfg))}
    for key_path, leaf in _leaves(abstract_params(cfg)):
        path = path_keys(key_path)
        if not lora.adapts(path):
            continue
        stack = stack_axes(path)
        split = stack + input_axes(path)
        fan_in = prod(leaf.shape[stack:split])
        a, b = factor_paths(path)
        yield a, Factor((*leaf.shape[:split], lora.rank), (*axes[path][:split], None), fan_in)
        shape_b = (*leaf.shape[:stack], lora.rank, *leaf.shape[split:])
        yield b, Factor(shape_b, (*axes[path][:stack], None, *axes[path][split:]), fan_in)


def _leaves(tree: Params) -> list[tuple[tuple[Any, ...], Any]]:
    return jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, tuple))


def _keys(path: tuple[Any, ...]) -> TreePath:
    return tuple(key.key for key in path)


def _union(base: Params, other: Params) -> Params:
    both = {key: _union(base[key], other[key]) for key in base.keys() & other.keys()}
    return {**base, **other, **both}
