import numpy as np
import pytest

from intellect_jax.config import default_config, validate
from intellect_jax.trainer.optimizer import rl_rates, sft_rates


def test_supervised_rates_warm_up_hold_and_decay_to_zero():
    sft = default_config().sft
    sft.update(steps=10, learning_rate=1.0, warmup_steps=4, decay_steps=3)
    np.testing.assert_allclose(sft_rates(sft), [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 2 / 3, 1 / 3], rtol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "warmup", "decay", "expected"),
    [
        ("constant", 2, 0, [1, 2, 2, 2]),
        ("linear", 2, 0, [1, 2, 2, 1.5, 1, 0.5]),
        ("cosine", 2, 0, [1, 2, 2, 1]),
        ("wsd", 2, 4, [1, 2, 2, 2, 2, 1.5, 1, 0.5]),
        ("wsd", 0, 2, [2, 2, 2, 1]),
        ("wsd", 1, 3, [2, 2, 4 / 3, 2 / 3]),
        ("wsd", 0, 9, [2, 1.5, 1, 0.5]),  # a run shorter than its decay
    ],
)
def test_rl_rates_follow_the_schedule(schedule, warmup, decay, expected):
    opt = default_config().trainer.optimizer
    opt.update(learning_rate=2.0, warmup_steps=warmup, schedule=schedule, decay_steps=decay)
    np.testing.assert_allclose(rl_rates(opt, len(expected)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "right"),
    [
        ({"schedule": "wsd"}, "wsd, and only wsd, needs decay_steps above 0"),
        ({"decay_steps": 5}, "wsd, and only wsd, needs decay_steps above 0"),
        ({"moments_dtype": "bfloat16", "b2": 0.999}, "use decays of at most 0.99, or float32"),
    ],
)
def test_what_cannot_work_is_told(changes, right):
    config = default_config()
    config.trainer.optimizer.update(changes)
    assert any(right in problem for problem in validate(config)), validate(config)
