"""The policies of the race, and what is asked of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from configs import debug_cpu
from intellect_jax.bridge import Policy, load_pretrained, save_pretrained
from intellect_jax.bridge.huggingface import to_hf
from intellect_jax.bridge.tokenizer import load_tokenizer, write_character_tokenizer
from intellect_jax.models.config import ModelConfig
from intellect_jax.models.transformer import init_params
from intellect_jax.transport.weights import WeightStore
from intellect_jax.types import Version

V0 = Version(0, 0)
_SMOLLM2 = ModelConfig(
    family="llama",
    vocab_size=49152,
    hidden_size=576,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    intermediate_size=1536,
    moe_intermediate_size=0,
    n_routed_experts=0,
    num_experts_per_tok=0,
    n_shared_experts=0,
    first_k_dense_replace=0,
    norm_topk_prob=False,
    attention_bias=False,
    partial_rotary_factor=1.0,
    rope_theta=100000.0,
    tie_word_embeddings=True,
    max_position_embeddings=8192,
    router="none",
    attention_output_bias=True,
)


@dataclass(frozen=True)
class Model:
    """A policy and its requests: ``group`` of them share a prompt, as the rollouts of a group do."""

    name: str
    prompt: int  # tokens
    answer: int  # tokens
    requests: int  # of a round, for each one in flight
    decode_steps: int
    group: int = 8

    @property
    def max_len(self) -> int:
        return self.prompt + self.answer

    @property
    def prefill_buckets(self) -> tuple[int, ...]:
        return (self.max_len,)


MODELS = {
    "demo": Model("demo", prompt=20, answer=16, requests=8, decode_steps=1),
    "smollm2": Model("smollm2", prompt=32, answer=32, requests=1, decode_steps=2),
    "toy": Model("toy", prompt=20, answer=12, requests=2, decode_steps=1),
}


def write_model(model: Model, folder: Path, smollm2: Path | None) -> tuple[ModelConfig, Path, Path]:
    """Folder with config, tokenizer and float32 weights, and the same weights as a published version.

    Returns the policy's shape, the model's folder and the version's manifest.
    """
    tokenizer = folder / "tokenizer"
    write_character_tokenizer(tokenizer)
    if model.name == "smollm2" and smollm2:
        policy, home = load_pretrained(smollm2), smollm2
    else:
        policy, home = _fresh(model.name, len(load_tokenizer(tokenizer))), folder / "model"
        save_pretrained(policy, home, dtype="float32", tokenizer=tokenizer)
    manifest = WeightStore(folder / "weights").publish(V0, to_hf(policy.params, policy.config))
    return policy.config, home, manifest


def _fresh(name: str, vocab_size: int) -> Policy:
    if name == "smollm2":
        return Policy(init_params(_SMOLLM2, 0), _SMOLLM2)
    config = debug_cpu.get_config()
    if name == "toy":
        config.model.update({"hidden_size": 32, "num_hidden_layers": 2, "moe_intermediate_size": 32})
    cfg = ModelConfig.from_config(config.model, vocab_size)
    return Policy(init_params(cfg, 0), cfg)
