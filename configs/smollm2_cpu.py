"""RL of a real pretrained model on two CPU cores: SmolLM2-135M-Instruct learns to write words in reverse order.

    pip install 'intellect-jax[gguf]'
    python -m intellect_jax.bridge.smollm2 ./models/SmolLM2-135M-Instruct
    python -m launch --config=configs/smollm2_cpu.py --fresh

The first two commands make the model's folder (a download of 93 MB). All 135 M parameters are trained, in float32. It
needs 12 GB of memory, 6 GB of disk, and about 40 minutes.
"""

from intellect_jax.config import default_config, env


def get_config(arg: str | None = None):
    config = default_config()
    config.seed = int(arg.removeprefix("seed=")) if arg else 0

    config.model.path = "./models/SmolLM2-135M-Instruct"
    config.model.compute_dtype = "float32"
    config.envs = (env("reverse_words", min_words=3, max_words=4),)

    trainer = config.trainer
    trainer.max_steps = 40
    trainer.optimizer.learning_rate = 2e-5
    trainer.remat = "full"  # faster on a CPU, and less memory
    trainer.rows = 8
    trainer.seq_buckets = (104,)  # two rollouts a row, of at most 41 + 10 tokens: longer rows waste attention
    trainer.microbatch_buckets = (4,)  # 4 * 8 rows * 2 rollouts: exactly a batch

    orchestrator = config.orchestrator
    orchestrator.batch_size = 64
    orchestrator.group_size = 8
    orchestrator.max_inflight_groups = 8
    orchestrator.max_off_policy_steps = 1
    orchestrator.max_new_tokens = 10
    config.eval.prompts = 128
    config.eval.every = 10

    sampler = config.sampler
    sampler.dtype = "float32"
    sampler.slots = 64
    sampler.max_len = 52
    sampler.prefill_buckets = (52,)
    sampler.prefill_rows = 8
    sampler.decode_steps = 2

    weights = config.weights  # 538 MB a version
    weights.dtype = "float32"  # exactly what the trainer holds, so that logprobs agree to rounding
    weights.keep = 3
    config.checkpoint.every = 20  # 1.6 GB each
    config.checkpoint.keep = 1
    return config
