"""A small mixture of experts whose step compiles in seconds."""

from intellect_jax.config import default_config, env


def get_config(arg: str | None = None):
    config = default_config()
    config.envs = (env("reverse_text"),)
    config.parallel.expert = int(arg or 1)
    config.model.update({"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2})
    config.model.update({"num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 48})
    config.model.update({"moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2})
    trainer, orchestrator = config.trainer, config.orchestrator
    trainer.rows, trainer.seq_buckets, trainer.microbatch_buckets = 2, (32,), (16,)
    orchestrator.batch_size, orchestrator.group_size, orchestrator.max_inflight_groups = 32, 4, 32
    orchestrator.max_new_tokens = 16
    config.sampler.max_len, config.sampler.prefill_buckets = 32, (32,)
    return config
