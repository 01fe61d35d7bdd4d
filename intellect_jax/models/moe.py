"""Mixture of experts with a sigmoid router (HF: Glm4MoeMoE; DeepSeek-V3, arXiv 2412.19437, section 2.1) or a softmax
router (HF: Qwen3MoeSparseMoeBlock)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from intellect_jax.kernels.grouped_matmul import LowRank
from intellect_jax.models.config import ModelConfig
from intellect_jax.models.layers import MLP, constant, param
from intellect_jax.models.ops import Ops


class Router(nnx.Module):
    """Chooses experts in float32. sigmoid: each expert scored by itself, and a bias that counts for selection only,
    grouped top-k; softmax: probabilities over all experts, top-k."""

    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        self.kernel = param(rngs, (cfg.hidden_size, cfg.n_routed_experts), ("embed", "router"), cfg.initializer_range)
        if cfg.router == "sigmoid":
            self.bias = constant(0.0, (cfg.n_routed_experts,), ("router",))
        self.cfg = cfg

    def __call__(
        self, x: Float[Array, "... d"], replay: Int[Array, "... k"] | None
    ) -> tuple[Int[Array, "... k"], Float[Array, "... k"]]:
        """Expert ids and weights; where ``replay`` is not -1 its experts are taken, weighted by today's scores."""
        cfg = self.cfg
        # HIGHEST: accelerators compute float32 products in fewer bits unless told, and another bit is another expert.
        exact = jnp.matmul(x.astype(jnp.float32), self.kernel.get_value(), precision=jax.lax.Precision.HIGHEST)
        logits = checkpoint_name(exact, "mlp")
        scores = jax.nn.sigmoid(logits) if cfg.router == "sigmoid" else jax.nn.softmax(logits)
        bias = self.bias.get_value() if hasattr(self, "bias") else 0.0
        ids = self._select(jax.lax.stop_gradient(scores + bias))
        if replay is not None:
            ids = jnp.where(replay >= 0, replay.astype(ids.dtype), ids)
        weights = jnp.take_along_axis(scores, ids, axis=-1)
        if cfg.norm_topk_prob:
            weights = weights / (weights.sum(axis=-1, keepdims=True) + 1e-20)
        return ids, weights * cfg.routed_scaling_factor

    def _select(self, choice: Float[Array, "... e"]) -> Int[Array, "... k"]:
        cfg = self.cfg
        if cfg.n_group > 1:  # keep the groups whose two best experts sum highest
            grouped = choice.reshape(*choice.shape[:-1], cfg.n_group, -1)
            group_scores = jax.lax.top_k(grouped, 2)[0].sum(axis=-1)
            kept = jax.lax.top_k(group_scores, cfg.topk_group)[1]
            allowed = jax.nn.one_hot(kept, cfg.n_group, dtype=bool).any(axis=-2)
            choice = jnp.where(allowed[..., None], grouped, -jnp.inf).reshape(choice.shape)
        return jax.lax.top_k(choice, cfg.num_experts_per_tok)[1]


class Experts(nnx.Module):
    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        e, d, f, std = cfg.n_routed_experts, cfg.hidden_size, cfg.moe_intermediate_size, cfg.initializer_range
        self.gate = param(rngs, (e, d, f), ("expert", "embed", "expert_mlp"), std)
        self.up = param(rngs, (e, d, f), ("expert", "embed", "expert_mlp"), std)
        self.down = param(rngs, (e, f, d), ("expert", "expert_mlp", "embed"), std)

    def low_rank(self, dtype: jnp.dtype) -> LowRank | None:
        """The adapter (see lora.py) that was attached as ``lora``."""
        if not hasattr(self, "lora"):
            return None
        return LowRank(**{name: factor.get_value().astype(dtype) for name, factor in self.lora.items()})


class MoE(nnx.Module):
    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        self.router = Router(cfg, rngs)
        self.experts = Experts(cfg, rngs)
        if cfg.n_shared_experts:
            width = cfg.n_shared_experts * cfg.moe_intermediate_size
            self.shared = MLP(rngs, cfg.hidden_size, width, cfg.initializer_range)

    def __call__(
        self, x: Float[Array, "b s d"], replay: Int[Array, "b s k"] | None, ops: Ops
    ) -> tuple[Float[Array, "b s d"], Int[Array, "b s k"]]:
        """Routed plus shared experts' output, and the experts chosen."""
        ids, weights = self.router(x, replay)
        experts = self.experts
        gate, up, down = (w.get_value().astype(x.dtype) for w in (experts.gate, experts.up, experts.down))
        y = ops.experts(x, ids, weights, gate, up, down, experts.low_rank(x.dtype))
        if hasattr(self, "shared"):
            y = y + self.shared(x, ops.product)
        return y, ids.astype(jnp.int16)
