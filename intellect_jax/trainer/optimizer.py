"""AdamW with float32 masters, and learning-rate schedules, from optax."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

UNDECAYED = ("scale", "bias")  # norms and biases carry no weight decay


def make_optimizer(opt: ConfigDict) -> optax.GradientTransformation:
    """Clipping, Adam and decay; the train step multiplies the result by minus the step's learning rate.

    The rate stays outside so that SFT and RL share one compiled step.
    """
    return optax.chain(
        optax.clip_by_global_norm(opt.clip_norm),
        optax.scale_by_adam(opt.b1, opt.b2, opt.eps),
        optax.add_decayed_weights(opt.weight_decay, mask=decay_mask),
    )


def decay_mask(params: Any) -> Any:
    """True for every array that weight decay applies to."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in UNDECAYED, params)


def rl_rates(opt: ConfigDict, steps: int) -> np.ndarray:
    """The learning rate of RL steps 1..steps, float32 [steps]."""
    rest = max(steps - opt.warmup_steps, 1)
    after = {
        "constant": optax.constant_schedule(opt.learning_rate),
        "linear": optax.linear_schedule(opt.learning_rate, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(opt.learning_rate, rest),
    }[opt.schedule]
    return _table(opt.learning_rate, opt.warmup_steps, after, steps)


def sft_rates(sft: ConfigDict) -> np.ndarray:
    """The learning rate of SFT steps 1..steps: linear warm-up, constant, linear decay to 0; float32 [steps]."""
    hold = max(sft.steps - sft.warmup_steps - sft.decay_steps, 0)
    after = optax.linear_schedule(sft.learning_rate, 0.0, max(sft.decay_steps, 1), transition_begin=hold)
    if sft.decay_steps == 0:
        after = optax.constant_schedule(sft.learning_rate)
    return _table(sft.learning_rate, sft.warmup_steps, after, sft.steps)


def _table(peak: float, warmup: int, after: optax.Schedule, steps: int) -> np.ndarray:
    ramp = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))
    schedule = optax.join_schedules([ramp, after], [warmup])
    return np.asarray(jax.vmap(schedule)(np.arange(steps)), np.float32)
