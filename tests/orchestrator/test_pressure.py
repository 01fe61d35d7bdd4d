"""The number of requests that a server gets at once, from what its /metrics says."""

from hypothesis import given
from hypothesis import strategies as st

from intellect_jax.config import default_config
from intellect_jax.monitor.server_stats import Stats
from intellect_jax.orchestrator.pressure import DECREASE, Bounds, steer


def stats(waiting=0.0, cache=0.0):
    return Stats(generated=0.0, running=0.0, waiting=waiting, cache=cache)


@st.composite
def looks(draw):
    low = draw(st.integers(1, 50))
    high = draw(st.integers(low, 500))
    bounds = Bounds(low, high, draw(st.integers(1, 500)), draw(st.integers(0, 20)), draw(st.floats(0.1, 1.0)))
    told = stats(draw(st.integers(0, 40)), draw(st.floats(0.0, 1.0)))
    return bounds, draw(st.integers(low, high)), draw(st.integers(0, 600)), draw(st.booleans()), told


@given(looks())
def test_invariants(look):
    bounds, limit, load, wanted, told = look
    after = steer(bounds, limit, load, wanted, told)
    too_much = told.cache >= bounds.high_water or told.waiting > bounds.spare
    assert bounds.low <= after <= bounds.high
    assert bounds.low <= bounds.start <= bounds.high
    if after > limit:
        assert wanted and load >= limit and told.waiting == 0 and told.cache < bounds.high_water
        assert after - limit <= bounds.step
    if after < limit:
        assert too_much and load <= limit and after >= int(limit * DECREASE)
    if too_much and load <= limit:
        assert after < limit or limit == bounds.low or limit == int(limit * DECREASE)
    if not too_much and wanted and load >= limit and told.waiting == 0:
        assert after > limit or limit == bounds.high


def follow(bounds, limit, room, seconds, ends=0.2):
    """Limits along a server that runs at most ``room`` of the many requests that want to come; a share ends between two
    looks."""
    load, limits = limit, []
    for _ in range(seconds):
        load = max(load - max(1, int(ends * min(load, room))), 0)
        load = max(load, limit) if load < limit else load
        limit = steer(bounds, limit, load, True, stats(max(0, load - room), min(1.0, load / room) * 0.9))
        limits.append(limit)
    return limits


@given(st.integers(20, 400), st.integers(1, 600))
def test_it_settles_about_what_the_server_can_hold(room, start):
    bounds = Bounds(1, 600, 100, 4, 0.95)
    settled = follow(bounds, min(start, 600), room, 400)[-100:]
    assert max(settled) <= room + bounds.step + bounds.spare
    assert min(settled) >= int(DECREASE * room)


def test_a_cache_that_fills_up_lowers_the_limit_once_until_that_shows():
    bounds = Bounds(1, 80, 80, 16, 0.95)
    limit = steer(bounds, 80, 80, True, stats(cache=0.97))
    assert limit == 60
    assert steer(bounds, limit, 75, True, stats(cache=0.97)) == 60, "the last decrease has not shown yet"
    assert steer(bounds, limit, 60, True, stats(cache=0.97)) == 45


def test_a_full_jax_sampler_keeps_its_limit():
    """All slots run, a few requests wait for one that comes free: that is as it should be."""
    sampler = default_config().sampler
    bounds = Bounds.from_config(sampler)
    assert bounds.start == bounds.high == sampler.slots + sampler.prefill_rows
    assert (
        steer(bounds, bounds.start, bounds.start, True, stats(waiting=sampler.prefill_rows, cache=0.8)) == bounds.start
    )


def test_bounds_are_the_configurations():
    sampler = default_config().sampler
    sampler.min_inflight, sampler.max_inflight = 3, 20
    bounds = Bounds.from_config(sampler)
    assert (bounds.low, bounds.high, bounds.start) == (3, 20, 20)
    sampler.max_inflight = 400
    assert Bounds.from_config(sampler).start == sampler.slots + sampler.prefill_rows
