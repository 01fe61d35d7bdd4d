"""The optimizer of a config, out of optax's parts."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from intellect_jax.models.lora_shape import target_of
from intellect_jax.models.transformer import Params
from intellect_jax.parallel.memory import HOST
from intellect_jax.trainer.optimizer.muon import scale_by_muon
from intellect_jax.trainer.optimizer.storage import on_host, stored_as
from intellect_jax.trees import path_keys

UNDECAYED = ("scale", "bias")  # norms and biases carry no weight decay


class Optimizer(NamedTuple):
    """An optax.GradientTransformation, and the kind of memory that holds its moments (None: the device's own)."""

    init: optax.TransformInitFn
    update: optax.TransformUpdateFn
    memory_kind: str | None = None


def make_optimizer(opt: ConfigDict, params: Params | None = None) -> Optimizer:
    """Clipping, AdamW or Muon, and decay; the train step multiplies the result by minus the step's learning rate.

    The rate stays outside so that SFT and RL share one compiled step. ``params``: what trains, as jax.ShapeDtypeStruct
    with shardings, by which Muon deals its work out to the devices of a mesh; None: everything is on one device.
    """
    scale = optax.scale_by_adam(opt.b1, opt.b2, opt.eps)
    if opt.name == "muon":
        scale = optax.partition({"muon": scale_by_muon(opt.muon, params), "adamw": scale}, _labels)
    scale = stored_as(jnp.dtype(opt.moments_dtype), scale)
    decay = optax.add_decayed_weights(opt.weight_decay, mask=decay_mask)
    chain = optax.chain(optax.clip_by_global_norm(opt.clip_norm), scale, decay)
    if opt.offload:
        chain = on_host(chain)
    return Optimizer(chain.init, chain.update, HOST if opt.offload else None)


def decay_mask(params: Any) -> Any:
    """True for every array that weight decay applies to."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in UNDECAYED, params)


def _labels(params: Any) -> Any:
    """Muon for the matrices of the layers; AdamW for embedding, head, router, norms and biases."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "muon" if target_of(path_keys(path)) else "adamw",
        params,
    )
