"""What looks at a run or stands in for one: the guard, monitors, `launch plan`, `launch bench`."""

from __future__ import annotations

from intellect_jax.config.checks import above, at_least, between, segment_length, tensorboard
from intellect_jax.config.key import Key, Section

GUARD: Section = {
    "enabled": Key(True, "end a run whose trainer and sampler disagree about log-probabilities"),
    "every": Key(10, "RL steps between two checks, the first before the first step", at_least(1)),
    "max_error": Key(
        0.0,
        "largest mean difference over tokens of the trainer's own version, of which none counts for more than 1, "
        "nats (0: 0.001 where all compute and store float32, else 0.05)",
        at_least(0.0),
    ),
}

PLAN: Section = {
    "member_share": Key(1.0, "share of a row's tokens that have a loss", between(0.0, 1.0)),
    "sampler_tokens_per_second": Key(2000.0, "what one sampler GPU makes with enough requests, tokens/s", above(0)),
    "request_tokens_per_second": Key(60.0, "what one request gets at most, tokens/s", above(0)),
    "response_mean": Key(0.0, "mean length of an answer, tokens (0: a quarter of max_new_tokens)", at_least(0.0)),
    "response_p95": Key(0.0, "length that 95% of answers stay below, tokens (0: 3 x the mean)", at_least(0.0)),
}

MONITOR: Section = {
    "tensorboard": Key(False, "also write every metric for TensorBoard, in <run>/tensorboard", tensorboard),
}

BENCH: Section = {
    "steps": Key(10, "steps that `launch bench` measures", at_least(1)),
    "warmup_steps": Key(2, "steps before them", at_least(1)),
    "microbatches": Key(0, "microbatches of a step (0: the largest of trainer.microbatch_buckets)", at_least(0)),
    "rows": Key(0, "rows of a microbatch (0: trainer.rows)", at_least(0)),
    "length": Key(0, "tokens of a row (0: the largest of trainer.seq_buckets)", at_least(0)),
    "segment": Key(0, "mean length of a made-up sample, tokens (0: a quarter of a row)", segment_length),
}
