"""The whole loop on one GPU: trainer and JAX engine share it, in bfloat16 and with flash attention.

    pip install 'intellect-jax[cuda]' tokamax
    python -m launch --config=configs/debug_gpu.py --fresh

The demo of configs/debug_cpu.py with a policy of 99 M parameters, 22 M of them active, for an H100 or H200: supervised
on sloppy demonstrations first, then RL on the reward. It has not run on a GPU yet: expect minutes, and a reward that
rises as the demo's does. A GPU of less than 24 GB needs smaller rows.
"""

from intellect_jax.config import default_config, env


def get_config(arg: str | None = None):
    config = default_config()
    config.seed = int(arg.removeprefix("seed=")) if arg else 0

    config.envs = (env("reverse_text", min_length=8, max_length=14, eval_min_length=12, eval_max_length=14),)

    model = config.model
    model.hidden_size = 512
    model.num_hidden_layers = 8
    model.num_attention_heads = 8
    model.num_key_value_heads = 2
    model.head_dim = 64
    model.intermediate_size = 1536
    model.moe_intermediate_size = 256
    model.n_routed_experts = 32
    model.num_experts_per_tok = 4
    model.rope_theta = 100.0  # contexts are short
    model.compute_dtype = "bfloat16"

    sft = config.sft  # as in the demo, in fewer and larger steps
    sft.data = "configs/data/reverse_text_sloppy.jsonl"
    sft.steps = 300
    sft.learning_rate = 1e-3
    sft.warmup_steps = 30
    sft.decay_steps = 150

    trainer = config.trainer
    trainer.platform = "cuda"
    trainer.gpu_memory = 0.55
    trainer.max_steps = 100
    trainer.optimizer.learning_rate = 3e-4
    trainer.optimizer.warmup_steps = 5
    trainer.optimizer.b2 = 0.99
    trainer.rows = 64
    trainer.seq_buckets = (256,)  # four rollouts of the longest
    trainer.microbatch_buckets = (2,)  # a batch of the longest rollouts

    orchestrator = config.orchestrator
    orchestrator.batch_size = 512
    orchestrator.group_size = 16
    orchestrator.max_inflight_groups = 64
    orchestrator.max_off_policy_steps = 2
    orchestrator.max_new_tokens = 18

    sampler = config.sampler
    sampler.platform = "cuda"
    sampler.gpu_memory = 0.3
    sampler.dtype = "bfloat16"
    sampler.slots = 512
    sampler.max_len = 64
    sampler.prefill_buckets = (64,)
    sampler.prefill_rows = 32
    sampler.decode_steps = 4

    config.checkpoint.every = 50
    return config
