"""Small policies whose every parameter matters: no unit norms, no zero biases."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from intellect_jax.bridge.policy import Policy
from intellect_jax.models.config import TRAITS, ModelConfig
from intellect_jax.models.lora import Adapter, abstract_adapter
from intellect_jax.models.lora_shape import Lora
from intellect_jax.models.rope_scaling import RopeScaling
from intellect_jax.models.transformer import abstract_params, forward, logits

# Most of these tests' time is compilation; the programs are the same, only the machine code is plainer.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
quick_jit = partial(jax.jit, compiler_options=QUICK)

SMALL = ModelConfig(
    vocab_size=96,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=12,
    intermediate_size=40,
    moe_intermediate_size=24,
    n_routed_experts=8,
    num_experts_per_tok=3,
    n_shared_experts=1,
    first_k_dense_replace=1,
)


def of_family(family: str, **changes: Any) -> ModelConfig:
    """SMALL as another family."""
    return dataclasses.replace(SMALL, **{"family": family, "attention_bias": False, **TRAITS[family], **changes})


# Each turns something else on or off; names are test ids.
GLM4_MOE = {
    name: dataclasses.replace(SMALL, **changes)
    for name, changes in {
        "plain": {},
        "qk_norm": {"use_qk_norm": True},
        "grouped": {"n_group": 4, "topk_group": 2},
        "grouped_scaled": {"n_group": 2, "topk_group": 1, "routed_scaling_factor": 2.5, "use_qk_norm": True},
        "not_renormalised": {"norm_topk_prob": False, "routed_scaling_factor": 0.7},
        "no_shared": {"n_shared_experts": 0},
        "two_shared": {"n_shared_experts": 2},
        "tied_without_bias": {"tie_word_embeddings": True, "attention_bias": False},
        "all_moe": {"first_k_dense_replace": 0, "num_key_value_heads": 4},
        "two_dense": {"first_k_dense_replace": 2, "num_key_value_heads": 1},
        "all_dense": {"first_k_dense_replace": 3},
        "rope": {"partial_rotary_factor": 1.0, "rope_theta": 1e6, "rms_norm_eps": 1e-3, "head_dim": 8},
        "yarn": {"rope_scaling": RopeScaling("yarn", 4.0, 64)},
    }.items()
}

# Contexts so short that their scaling touches every part of the few frequencies there are.
LLAMA3 = RopeScaling("llama3", 8.0, 64, low_freq_factor=1.0, high_freq_factor=4.0)
LLAMA3_2 = RopeScaling("llama3", 32.0, 96, low_freq_factor=1.0, high_freq_factor=4.0)
LINEAR = RopeScaling("linear", 3.0)
YARN = RopeScaling("yarn", 4.0, 64, beta_fast=6.0, beta_slow=0.5, mscale=1.0, mscale_all_dim=0.5, truncate=False)

OTHERS = {
    f"{family}_{name}".removesuffix("_"): of_family(family, **changes)
    for family, variants in {
        "qwen3_moe": {
            "": {},
            "sparse_step": {"num_hidden_layers": 5, "decoder_sparse_step": 2, "tie_word_embeddings": True},
            "mlp_only": {"num_hidden_layers": 5, "mlp_only_layers": (1, 3, 4), "norm_topk_prob": False},
            "mlp_only_sparse_step": {"num_hidden_layers": 6, "decoder_sparse_step": 2, "mlp_only_layers": (3,)},
            "bias_yarn": {"attention_bias": True, "rope_scaling": RopeScaling("yarn", 2.0, 32, attention_factor=1.3)},
            "bias": {"attention_bias": True, "num_key_value_heads": 4},
            "not_renormalised": {"norm_topk_prob": False, "tie_word_embeddings": True},
            "one_expert": {"num_experts_per_tok": 1, "num_key_value_heads": 1, "norm_topk_prob": False},
            "every_expert": {"num_experts_per_tok": 8, "head_dim": 8},
            "linear": {"rope_scaling": LINEAR, "rms_norm_eps": 1e-3},
            "llama3": {"rope_scaling": LLAMA3, "rope_theta": 5e5},
            "yarn": {"rope_scaling": YARN, "norm_topk_prob": False},
        },
        "qwen3": {
            "": {"head_dim": 8},
            "tied": {"tie_word_embeddings": True},
            "bias": {"attention_bias": True, "head_dim": 16},
            "tied_bias": {"tie_word_embeddings": True, "attention_bias": True},
            "yarn": {"rope_scaling": YARN, "rms_norm_eps": 1e-3},
            "tied_yarn": {"tie_word_embeddings": True, "rope_scaling": RopeScaling("yarn", 4.0, 64)},
            "linear": {"rope_scaling": LINEAR, "num_key_value_heads": 4},
            "tied_linear_bias": {"tie_word_embeddings": True, "attention_bias": True, "rope_scaling": LINEAR},
            "llama3": {"rope_scaling": LLAMA3, "rope_theta": 5e5},
            "one_kv_head": {"num_key_value_heads": 1, "rope_theta": 1e6},
            "one_layer": {"num_hidden_layers": 1, "rms_norm_eps": 1e-3},
            "five_layers": {"num_hidden_layers": 5, "num_attention_heads": 8, "num_key_value_heads": 4},
        },
        "llama": {
            "": {"head_dim": 8, "num_key_value_heads": 4},
            "tied": {"tie_word_embeddings": True},
            "bias": {"attention_bias": True, "num_key_value_heads": 1},
            "tied_bias": {"tie_word_embeddings": True, "attention_bias": True, "num_key_value_heads": 4},
            "linear": {"rope_scaling": LINEAR, "rms_norm_eps": 1e-3},
            "tied_linear": {"tie_word_embeddings": True, "rope_scaling": LINEAR},
            "llama3": {"rope_scaling": LLAMA3, "rope_theta": 5e5},
            "tied_llama3": {"tie_word_embeddings": True, "rope_scaling": LLAMA3_2, "head_dim": 16},
            "yarn": {"rope_scaling": YARN, "rope_theta": 1e6},
            "bias_yarn": {"attention_bias": True, "rope_scaling": RopeScaling("yarn", 2.0, 32, attention_factor=1.3)},
            "one_layer": {"num_hidden_layers": 1, "rms_norm_eps": 1e-6},
            "five_layers": {"num_hidden_layers": 5, "num_attention_heads": 8, "num_key_value_heads": 4},
        },
    }.items()
    for name, changes in variants.items()
}
CONFIGS: dict[str, ModelConfig] = {**GLM4_MOE, **OTHERS}


def random_params(cfg: ModelConfig, seed: int = 0) -> dict[str, Any]:
    """Float32 parameters on the host: norms around 1, biases and the router's selection bias large."""
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        keys = [key.key for key in path]
        noise = rng.normal(size=leaf.shape).astype(np.float32)
        if keys[-1] == "scale":
            return 1 + 0.3 * noise
        return (0.5 if keys[-1] == "bias" else 0.2) * noise

    return jax.tree_util.tree_map_with_path(fill, abstract_params(cfg))


def assert_trees_equal(a: Any, b: Any) -> None:
    """The same structure, dtypes and bits."""
    leaves_a, structure_a = jax.tree.flatten(a)
    leaves_b, structure_b = jax.tree.flatten(b)
    assert structure_a == structure_b
    for x, y in zip(map(np.asarray, leaves_a), map(np.asarray, leaves_b), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()


def plain_logits(cfg: ModelConfig) -> Callable[..., jax.Array]:
    """A function of parameters, and tokens, positions, segment ids [B, S]: float32 logits [B, S, V]."""

    def compute(params, tokens, positions, segment_ids):
        return logits(params, cfg, forward(params, cfg, tokens, positions, segment_ids).hidden)

    return compute


def logits_function(cfg: ModelConfig) -> Callable[..., jax.Array]:
    """:func:`plain_logits`, compiled."""
    return quick_jit(plain_logits(cfg))


def loss_function(cfg: ModelConfig) -> Callable[..., jax.Array]:
    """A function of parameters, tokens and targets [B, S]: mean cross-entropy."""
    compute = plain_logits(cfg)

    def loss(params, tokens, targets):
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        logprobs = jax.nn.log_softmax(compute(params, tokens, positions, jnp.ones_like(tokens)))
        return -jnp.take_along_axis(logprobs, targets[..., None], axis=-1).mean()

    return loss


def loss_and_gradients(cfg: ModelConfig) -> Callable[..., tuple[jax.Array, Any]]:
    """A compiled function of parameters, tokens and targets [B, S]: mean cross-entropy and its gradients."""
    return quick_jit(jax.value_and_grad(loss_function(cfg)))


def relative_error(mine: np.ndarray, theirs: np.ndarray) -> float:
    """L2 norm of the difference, relative to ``theirs``; 0 where both are 0."""
    difference = float(np.linalg.norm(mine - theirs))
    return difference / float(np.linalg.norm(theirs)) if difference else 0.0


def with_random_adapter(policy: Policy, lora: Lora, seed: int = 0) -> Policy:
    """The policy with an adapter of which neither factor is zero."""
    rng = np.random.default_rng(seed)
    shapes = abstract_adapter(policy.config, lora)
    factors = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.15, leaf.shape), jnp.float32), shapes)
    return dataclasses.replace(policy, adapter=Adapter(factors, lora))
