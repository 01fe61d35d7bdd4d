"""Learning rates by step, from optax's schedules."""

from __future__ import annotations

import jax
import numpy as np
import optax
from ml_collections import ConfigDict


def rl_rates(opt: ConfigDict, steps: int) -> np.ndarray:
    """The learning rate of RL steps 1..steps, float32 [steps]."""
    rest = max(steps - opt.warmup_steps, 1)
    after = {
        "constant": optax.constant_schedule(opt.learning_rate),
        "linear": optax.linear_schedule(opt.learning_rate, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(opt.learning_rate, rest),
        "wsd": _stable_then_decay(opt.learning_rate, rest, opt.decay_steps),
    }[opt.schedule]
    return _table(opt.learning_rate, opt.warmup_steps, after, steps)


def sft_rates(sft: ConfigDict) -> np.ndarray:
    """The learning rate of SFT steps 1..steps: warm-up, stable, decay over ``decay_steps``; float32 [steps]."""
    after = _stable_then_decay(sft.learning_rate, sft.steps - sft.warmup_steps, sft.decay_steps)
    return _table(sft.learning_rate, sft.warmup_steps, after, sft.steps)


def _stable_then_decay(peak: float, steps: int, decay_steps: int) -> optax.Schedule:
    """``peak``, and over the last ``decay_steps`` of ``steps`` (all, if they are fewer) linearly to 0; 0: constant.

    What follows the warm-up in WSD (MiniCPM, arXiv 2404.06395, section 4), whose decay may have any shape.
    """
    if decay_steps == 0:
        return optax.constant_schedule(peak)
    falling = max(min(decay_steps, steps), 1)
    return optax.linear_schedule(peak, 0.0, falling, transition_begin=max(steps - falling, 0))


def _table(peak: float, warmup: int, after: optax.Schedule, steps: int) -> np.ndarray:
    ramp = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))
    schedule = optax.join_schedules([ramp, after], [warmup])
    return np.asarray(jax.vmap(schedule)(np.arange(steps)), np.float32)
