"""The demo: asynchronous RL of a GLM-4.5-style mixture of experts on a bare CPU.

    python -m launch --config=configs/debug_cpu.py --fresh
    python -m launch --config=configs/debug_cpu.py:seed=3 --config.trainer.optimizer.learning_rate=1e-4

A policy of 2.9 M parameters learns to reverse words: supervised on short ones first, then RL on longer ones, with
trainer, orchestrator, sampler and an environment worker each in a process of its own.
"""

from intellect_jax.config import default_config, env


def get_config(arg: str | None = None):
    config = default_config()
    config.seed = int(arg.removeprefix("seed=")) if arg else 0

    config.envs = (env("reverse_text", min_length=9, max_length=16),)

    model = config.model  # 2.9 M parameters, 0.9 M active
    model.initializer_range = 0.05
    model.compute_dtype = "float32"

    sft = config.sft  # teaches the format, and words of up to 9 letters
    sft.data = "configs/data/reverse_text_sft.jsonl"
    sft.steps = 300
    sft.learning_rate = 2e-3
    sft.warmup_steps = 20
    sft.decay_steps = 90

    trainer = config.trainer
    trainer.max_steps = 150
    trainer.optimizer.learning_rate = 5e-4
    trainer.optimizer.b2 = 0.99
    trainer.rows = 16
    trainer.seq_buckets = (128,)
    trainer.microbatch_buckets = (8,)

    orchestrator = config.orchestrator
    orchestrator.batch_size = 256
    orchestrator.group_size = 16
    orchestrator.max_inflight_groups = 8
    orchestrator.max_new_tokens = 20

    sampler = config.sampler
    sampler.dtype = "float32"
    sampler.slots = 64
    sampler.max_len = 48
    sampler.prefill_buckets = (48,)

    config.weights.dtype = "float32"
    config.export.dtype = "float32"
    config.checkpoint.every = 50
    return config
