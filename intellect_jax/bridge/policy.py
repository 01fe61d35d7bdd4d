"""A policy in memory: parameters, shape, and the Hugging Face folder that it came from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from intellect_jax.models import transformer
from intellect_jax.models.config import ModelConfig
from intellect_jax.models.lora import Adapter, with_adapter
from intellect_jax.models.transformer import Params


@dataclass(frozen=True)
class Policy:
    """``params``: the tree of ``models.transformer``, of device arrays. ``source``: the Hugging Face folder whose
    unused tensors, unknown config keys, tokenizer and tensor names an export takes along; None for fresh weights.
    ``adapter``: LoRA on top of ``params``; what is written as a whole model has it merged."""

    params: Params
    config: ModelConfig
    source: Path | None = None
    adapter: Adapter | None = None

    def logits(self, tokens: Int[Array, "b s"], segment_ids: Int[Array, "b s"] | None = None) -> Float[Array, "b s v"]:
        """Float32 logits, computed in the dtype of the parameters.

        ``segment_ids``: tokens see earlier ones of their own segment, and positions start again with each; 0 is
        padding. None: every row is one sequence.
        """
        tokens = jnp.asarray(tokens, jnp.int32)
        segments = jnp.ones_like(tokens) if segment_ids is None else jnp.asarray(segment_ids, jnp.int32)
        params = with_adapter(self.params, self.adapter) if self.adapter else self.params
        return _logits(params, self.config, tokens, segments)


@partial(jax.jit, static_argnums=1)
def _logits(params: Params, cfg: ModelConfig, tokens: Array, segment_ids: Array) -> Array:
    index = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    starts = jnp.diff(segment_ids, axis=1, prepend=-1) != 0
    positions = index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)
    dtype = params["embed"]["weight"].dtype
    hidden = transformer.forward(params, cfg, tokens, positions, segment_ids, compute_dtype=dtype).hidden
    return transformer.logits(params, cfg, hidden)
