"""What trains: the model, its adapters, its tokenizer."""

from __future__ import annotations

from intellect_jax.config.checks import above, at_least, between, lora_targets, one_of
from intellect_jax.config.key import Key, Section
from intellect_jax.models.config import TRAITS

MODEL: Section = {
    "path": Key("", "Hugging Face folder or id to start from; empty: fresh weights of the shape below"),
    "family": Key(
        "glm4_moe",
        "architecture of fresh weights (a Hugging Face model_type); it has the last word on what it fixes, "
        "such as use_qk_norm",
        one_of(*TRAITS),
    ),
    "vocab_size": Key(0, "rows of the embedding; 0: the tokenizer's size", at_least(0)),
    "hidden_size": Key(128, "width of the residual stream", at_least(1)),
    "num_hidden_layers": Key(4, "decoder layers", at_least(1)),
    "num_attention_heads": Key(4, "query heads", at_least(1)),
    "num_key_value_heads": Key(2, "key/value heads", at_least(1)),
    "head_dim": Key(32, "width of one head", at_least(2)),
    "intermediate_size": Key(384, "width of dense MLPs", at_least(1)),
    "moe_intermediate_size": Key(128, "width of one expert", at_least(1)),
    "n_routed_experts": Key(16, "routed experts per MoE layer", at_least(1)),
    "num_experts_per_tok": Key(2, "experts a token visits", at_least(1)),
    "n_shared_experts": Key(1, "experts every token visits", at_least(0)),
    "first_k_dense_replace": Key(1, "leading layers with a dense MLP", at_least(0)),
    "n_group": Key(1, "groups of experts for grouped routing", at_least(1)),
    "topk_group": Key(1, "groups a token may choose experts from", at_least(1)),
    "norm_topk_prob": Key(True, "renormalise the chosen experts' weights to sum to 1"),
    "routed_scaling_factor": Key(1.0, "factor on the routed experts' weights", above(0)),
    "attention_bias": Key(True, "bias on the query, key and value projections"),
    "use_qk_norm": Key(False, "RMSNorm on queries and keys, per head"),
    "partial_rotary_factor": Key(0.5, "share of head_dim that RoPE rotates", between(0.0, 1.0)),
    "rope_theta": Key(10000.0, "RoPE base", above(0)),
    "rms_norm_eps": Key(1e-5, "epsilon of every RMSNorm", above(0)),
    "tie_word_embeddings": Key(False, "share embedding and head"),
    "max_position_embeddings": Key(512, "longest context the config file announces, tokens", at_least(1)),
    "initializer_range": Key(0.02, "standard deviation of fresh weights", above(0)),
    "compute_dtype": Key("bfloat16", "dtype of activations", one_of("bfloat16", "float32")),
}

LORA: Section = {
    "rank": Key(0, "rank of the adapters, which alone train (0: no LoRA, the whole policy trains)", at_least(0)),
    "alpha": Key(16.0, "the adapters' share is alpha / rank", above(0)),
    "targets": Key(
        ("attention",),
        "what has adapters: attention (all four projections), dense (MLPs of dense layers, shared experts), "
        "experts (routed ones)",
        lora_targets,
    ),
}

TOKENIZER: Section = {
    "path": Key("", "tokenizer folder or id; empty: model.path's, or a character tokenizer for fresh weights"),
}
