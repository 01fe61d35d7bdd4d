"""The demo: asynchronous RL of a GLM-4.5-style mixture of experts on a bare CPU.

    python -m launch --config=configs/debug_cpu.py --fresh
    python -m launch --config=configs/debug_cpu.py:seed=3 --config.trainer.optimizer.learning_rate=1e-4

A policy of 1.1 M parameters learns to reverse words: supervised on sloppy demonstrations first, then RL on the reward,
with trainer, orchestrator, sampler and an environment worker each in a process of its own.
"""

from intellect_jax.config import default_config, env


def get_config(arg: str | None = None):
    config = default_config()
    config.seed = int(arg.removeprefix("seed=")) if arg else 0

    config.envs = (env("reverse_text", min_length=8, max_length=14, eval_min_length=12, eval_max_length=14),)

    model = config.model  # 1.1 M parameters, a third of them active
    model.hidden_size = 96
    model.num_hidden_layers = 3
    model.intermediate_size = 256
    model.moe_intermediate_size = 96
    model.rope_theta = 100.0  # contexts are short
    model.initializer_range = 0.05
    model.compute_dtype = "float32"

    sft = config.sft  # the demonstrations swap three pairs of four: greedy answers score below 0.6
    # make_sft.py --count=8000 --min_length=4 --max_length=16 --sloppy=0.77
    sft.data = "configs/data/reverse_text_sloppy.jsonl"
    sft.steps = 600
    sft.learning_rate = 3e-3
    sft.warmup_steps = 20
    sft.decay_steps = 350

    trainer = config.trainer
    trainer.max_steps = 150
    trainer.optimizer.learning_rate = 1e-3
    trainer.optimizer.schedule = "wsd"  # the last steps, ever smaller, bring the exact answers
    trainer.optimizer.decay_steps = 50
    trainer.optimizer.b2 = 0.99
    trainer.remat = "full"  # a quarter faster on a CPU: what a scan keeps costs more than computing it again
    trainer.rows = 16
    trainer.seq_buckets = (64,)  # two rollouts a row: longer rows would waste attention across them
    trainer.microbatch_buckets = (8,)  # about five are used; empty ones cost nothing

    orchestrator = config.orchestrator
    orchestrator.batch_size = 128
    orchestrator.group_size = 8
    orchestrator.max_inflight_groups = 16
    orchestrator.max_off_policy_steps = 1
    orchestrator.max_new_tokens = 18

    sampler = config.sampler
    sampler.dtype = "float32"
    sampler.slots = 64
    sampler.max_len = 36
    sampler.prefill_buckets = (36,)
    sampler.prefill_rows = 8

    config.weights.dtype = "float32"  # exactly what the trainer holds, so that logprobs agree to rounding
    config.export.dtype = "float32"
    config.checkpoint.every = 50
    config.launch.threads = 1  # one core for the trainer, one for the sampler
    return config
