import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from intellect_jax.algorithms.advantages import group_mean, group_std
from intellect_jax.algorithms.losses import Streams, any_in_segment, dppo, icepop, reference_kl

ICEPOP = ConfigDict({"alpha": 0.5, "beta": 5.0, "rollout_floor": 1e-5})
DPPO = ConfigDict({"delta": 0.2, "kl_coef": 1e-3})


def streams(sampler, advantages, segments=None):
    sampler = jnp.asarray([sampler], jnp.float32)
    segments = jnp.ones(sampler.shape, jnp.int32) if segments is None else jnp.asarray([segments])
    return Streams(sampler, jnp.asarray([advantages], jnp.float32), jnp.ones(sampler.shape, bool), segments)


def value_and_grad(loss, logprobs, s, hyper):
    logprobs = jnp.asarray([logprobs], jnp.float32)
    return loss(logprobs, s, hyper)[0], jax.grad(lambda lp: loss(lp, s, hyper).sum())(logprobs)[0]


def test_icepop_trains_inside_its_bounds_only():
    ratios = np.array([0.4, 0.6, 1.0, 4.9, 5.1])
    value, grad = value_and_grad(icepop, np.log(ratios) - 1, streams([-1.0] * 5, [2.0] * 5), ICEPOP)
    expected = np.array([0, -0.6 * 2, -2, -4.9 * 2, 0])  # -r A, whose gradient by log pi is -r A too
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(grad, expected, rtol=1e-5)


def test_icepop_drops_a_whole_sample_for_one_lost_token_and_no_other():
    s = streams([-1.0] * 6, [1.0] * 6, segments=[1, 1, 1, 2, 2, 0])
    logprobs = [-1.0, -1.0 + np.log(0.9e-5), -1.0, -1.0, -1.0, -1.0]
    value, grad = value_and_grad(icepop, logprobs, s, ICEPOP)
    np.testing.assert_allclose(value, [0, 0, 0, -1, -1, -1])
    np.testing.assert_allclose(grad, [0, 0, 0, -1, -1, -1])


def test_ratios_that_overflow_leave_no_nan():
    s = streams([-200.0, -1.0], [1.0, 1.0], segments=[1, 2])
    for loss, hyper in ((icepop, ICEPOP), (dppo, DPPO)):
        value, grad = value_and_grad(loss, [-1.0, -200.0], s, hyper)
        assert np.isfinite(value).all() and np.isfinite(grad).all()


def test_dppo_masks_what_moved_too_far_in_the_direction_of_the_advantage():
    sampler = np.log([0.5, 0.5, 0.5, 0.5])
    trainer = np.log([0.75, 0.25, 0.25, 0.75])
    value, _ = value_and_grad(dppo, trainer, streams(sampler, [1.0, -1.0, 1.0, -1.0]), DPPO)
    penalty = 1e-3 * (trainer - sampler) ** 2
    np.testing.assert_allclose(value, [penalty[0], penalty[1], -0.5 + penalty[2], 1.5 + penalty[3]], rtol=1e-5)


def test_any_in_segment_stays_within_rows_and_segments():
    flags = jnp.array([[False, True, False, False], [False, False, False, True]])
    segments = jnp.array([[1, 1, 2, 0], [1, 1, 1, 2]])
    np.testing.assert_array_equal(
        any_in_segment(flags, segments), [[True, True, False, False], [False, False, False, True]]
    )


def test_reference_kl_is_zero_only_at_equality_and_averages_to_the_kl():
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.3, 0.2])
    estimate = reference_kl(jnp.log(p), jnp.log(q))
    np.testing.assert_allclose(np.sum(p * np.asarray(estimate)), np.sum(p * np.log(p / q)), rtol=1e-5)
    np.testing.assert_allclose(reference_kl(jnp.log(p), jnp.log(p)), 0)


def test_advantages_of_a_group():
    rewards = np.array([1.0, 0.0, 0.5, 0.5])
    np.testing.assert_allclose(group_mean(rewards), [0.5, -0.5, 0, 0])
    np.testing.assert_allclose(group_std(rewards), [2**0.5, -(2**0.5), 0, 0], rtol=1e-5)
