"""Grouped-query self-attention with optional biases, QK norm and (partial) RoPE.

HF: Glm4MoeAttention, Qwen3Attention, Qwen3MoeAttention, LlamaAttention.
"""

from __future__ import annotations

from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from intellect_jax.kernels.products import plain
from intellect_jax.models.config import ModelConfig
from intellect_jax.models.layers import Linear, Product, RMSNorm
from intellect_jax.models.ops import Ops
from intellect_jax.models.rope import rotate


class Attention(nnx.Module):
    def __init__(self, cfg: ModelConfig, rngs: nnx.Rngs):
        d, h, kv, c = cfg.hidden_size, cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim
        bias = 2 if cfg.attention_bias else 0
        std = cfg.initializer_range
        self.q = Linear(rngs, (d, h, c), ("embed", "heads", "head_dim"), std, bias)
        self.k = Linear(rngs, (d, kv, c), ("embed", "kv_heads", "head_dim"), std, bias)
        self.v = Linear(rngs, (d, kv, c), ("embed", "kv_heads", "head_dim"), std, bias)
        out_bias = int(cfg.attention_bias and cfg.attention_output_bias)
        self.o = Linear(rngs, (h, c, d), ("heads", "head_dim", "embed"), std, out_bias, contract=2)
        if cfg.use_qk_norm:
            self.q_norm = RMSNorm(c, cfg.rms_norm_eps)
            self.k_norm = RMSNorm(c, cfg.rms_norm_eps)

    def qkv(
        self, x: Float[Array, "b s d"], cos: Array, sin: Array, product: Product = plain
    ) -> tuple[Array, Array, Array]:
        """Rotated queries [B, S, H, C], rotated keys and values [B, S, K, C]."""
        q, k, v = (linear(x, product) for linear in (self.q, self.k, self.v))
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def packed(self, x, cos, sin, segment_ids, positions, ops: Ops) -> Array:
        """Attention within the packed rows ``x``."""
        q, k, v = (checkpoint_name(y, "qkv") for y in self.qkv(x, cos, sin, ops.product))
        return self.o(ops.attention(q, k, v, segment_ids, positions), ops.product)
