"""Model FLOPs against counts made another way: 6 for every parameter that a token meets, and attention's triangle."""

from math import prod

import jax
import pytest

from intellect_jax.config import default_config
from intellect_jax.models.config import ModelConfig
from intellect_jax.models.transformer import abstract_params
from launch.plan.model_flops import Batch, step_flops
from tests.policies import CONFIGS

GLM45_AIR = {
    **{"vocab_size": 151552, "hidden_size": 4096, "num_hidden_layers": 46, "num_attention_heads": 96},
    **{"num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 10944, "moe_intermediate_size": 1408},
    **{"n_routed_experts": 128, "num_experts_per_tok": 8},
}


def glm45_air() -> ModelConfig:
    config = default_config()
    config.model.update(GLM45_AIR)
    return ModelConfig.from_config(config.model, 0)


def matrices(cfg: ModelConfig) -> float:
    """Parameters of matrices that a token is multiplied with: of an expert's, the share that it visits."""
    total = 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_params(cfg)):
        keys = [key.key for key in path]
        share = cfg.num_experts_per_tok / cfg.n_routed_experts if "experts" in keys else 1.0
        if keys[-1] not in ("scale", "bias") and keys[0] != "embed":
            total += share * prod(leaf.shape)
    return total + (cfg.vocab_size * cfg.hidden_size if cfg.tie_word_embeddings else 0)


def triangle(cfg: ModelConfig, length: int) -> int:
    """FLOPs of one row's attention, forward: every token with itself and all before, scores and weighted sum."""
    pairs = sum(range(1, length + 1))
    return cfg.num_hidden_layers * pairs * 2 * (2 * cfg.num_attention_heads * cfg.head_dim)


@pytest.mark.parametrize(
    "name", ["plain", "no_shared", "two_shared", "all_dense", "qwen3_moe_sparse_step", "llama_tied"]
)
def test_of_every_family(name):
    cfg, batch = CONFIGS[name], Batch(3, 2, 40)
    expected = 6 * matrices(cfg) * batch.tokens + 3 * 6 * triangle(cfg, 40)
    assert sum(step_flops(cfg, batch).values()) == pytest.approx(expected, rel=1e-9)


def test_of_glm45_air():
    cfg, batch = glm45_air(), Batch(1, 1, 65536)
    parts = step_flops(cfg, batch)
    expected = 6 * matrices(cfg) * batch.tokens + 3 * triangle(cfg, 65536)
    assert sum(parts.values()) == pytest.approx(expected, rel=1e-9)


def test_the_head_is_for_members_alone():
    cfg = CONFIGS["plain"]
    all_of_them, half = step_flops(cfg, Batch(1, 1, 64)), step_flops(cfg, Batch(1, 1, 64, 0.5))
    assert half["head"] == all_of_them["head"] / 2 and half["dense_mlp"] == all_of_them["dense_mlp"]


def test_lora_spares_the_gradients_of_what_is_frozen():
    full, adapted = (step_flops(CONFIGS["plain"], Batch(1, 1, 64), frozen=frozen) for frozen in (False, True))
    assert adapted["routed_experts"] == full["routed_experts"] * 2 / 3
    assert adapted["attention"] == full["attention"]
