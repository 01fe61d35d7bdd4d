"""The simulated loop, against what can be said without simulating."""

import pytest

from intellect_jax.config import default_config
from launch.plan.fleet import ENOUGH, Lengths, Loop, balance, loop_of, simulate

LENGTHS = Lengths(mean=1000.0, p95=2500.0, longest=8192)


def loop(**changes):
    plain = {
        "lengths": LENGTHS,
        "samplers": 8,
        "sampler_rate": 2000.0,
        "request_rate": 50.0,
        "step_seconds": 100.0,
        "groups_per_batch": 8,
        "group_size": 8,
        "max_inflight_groups": 32,
        "max_off_policy_steps": 8,
        "queue_size": 1,
    }
    return Loop(**{**plain, **changes})


def test_lengths_have_the_mean_and_percentile_asked_for():
    import numpy as np

    drawn = Lengths(1000.0, 2500.0, 10**9).draw(np.random.default_rng(0), 200_000)
    assert drawn.mean() == pytest.approx(1000, rel=0.02)
    assert np.quantile(drawn, 0.95) == pytest.approx(2500, rel=0.03)
    assert LENGTHS.draw(np.random.default_rng(0), 10_000).max() <= 8192


def test_a_large_fleet_keeps_the_trainer_busy():
    figures = simulate(loop(samplers=64))
    assert figures.step_seconds == pytest.approx(100.0) and figures.trainer_idle < 0.01
    assert figures.sampler_idle > 0.5


def test_a_small_fleet_sets_the_pace():
    figures = simulate(loop(step_seconds=1.0, samplers=1, request_rate=1e9))
    tokens = 8 * 8 * 1000.0
    assert figures.step_seconds == pytest.approx(tokens / 2000.0, rel=0.15)
    assert figures.trainer_idle > 0.9 and figures.sampler_idle < 0.01


@pytest.mark.parametrize("bound", [0, 1, 3])
def test_staleness_never_exceeds_its_bound(bound):
    for samplers in (1, 4, 40):
        figures = simulate(loop(max_off_policy_steps=bound, samplers=samplers))
        assert 0 <= figures.staleness_mean <= figures.staleness_max <= bound


def test_without_staleness_trainer_and_samplers_take_turns():
    synchronous, asynchronous = (simulate(loop(max_off_policy_steps=bound)) for bound in (0, 4))
    assert synchronous.step_seconds > 1.2 * asynchronous.step_seconds
    assert synchronous.trainer_idle > asynchronous.trainer_idle


def test_the_same_seed_gives_the_same_figures():
    assert simulate(loop(), 3) == simulate(loop(), 3) != simulate(loop(), 4)


def test_balance_finds_a_fleet_that_feeds_the_trainer():
    rows = balance(loop(sampler_rate=100.0))
    assert [row.samplers for row in rows] == sorted(row.samplers for row in rows)
    assert rows[0].trainer_idle > ENOUGH >= rows[-1].trainer_idle
    fair = 64 * 1000 / 100 / 100
    assert fair <= next(row.samplers for row in rows if row.fed) <= 2 * fair


def test_a_configuration_without_lengths_gets_some():
    config = default_config()
    config.orchestrator.max_new_tokens = 4000
    assert loop_of(config, 10.0, 2).lengths == Lengths(1000.0, 3000.0, 4000)
    config.plan.response_mean, config.plan.response_p95 = 500.0, 900.0
    assert loop_of(config, 10.0, 2).lengths == Lengths(500.0, 900.0, 4000)
