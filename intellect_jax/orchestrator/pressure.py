"""How many requests one server should have at once: additive increase, multiplicative decrease, from its /metrics."""

from __future__ import annotations

from dataclasses import dataclass

from ml_collections import ConfigDict

from intellect_jax.monitor.server_stats import Stats

DECREASE = 0.75  # of the limit is left after a look at a server that has too much
_STEPS = 16  # increases from nothing to the highest limit


@dataclass(frozen=True)
class Bounds:
    """``low`` <= every limit <= ``high``; ``full`` fills a server, ``spare`` included.

    ``spare``: requests that may wait at a server, so that a slot which comes free is filled at once. ``high_water``:
    share of the KV cache above which running requests will soon be thrown out of it.
    """

    low: int
    high: int
    full: int
    spare: int
    high_water: float

    @classmethod
    def from_config(cls, sampler: ConfigDict) -> Bounds:
        full = sampler.slots + sampler.prefill_rows
        high = max(sampler.max_inflight or full, sampler.min_inflight)
        return cls(sampler.min_inflight, high, full, sampler.prefill_rows, sampler.cache_high_water)

    @property
    def start(self) -> int:
        """The limit of a server of which nothing is known yet."""
        return min(self.high, max(self.low, self.full))

    @property
    def step(self) -> int:
        """Requests that one increase adds."""
        return max(1, self.high // _STEPS)


def steer(bounds: Bounds, limit: int, load: int, wanted: bool, stats: Stats) -> int:
    """The limit from now on, after one look at the server.

    ``load``: requests that it has from us; ``wanted``: others wait for room. Invariants: the result is within bounds.
    It rises, by at most ``bounds.step``, only when somebody waits for room, the limit is used up, nothing waits at the
    server and its cache is below the high-water mark. It falls, to no less than DECREASE of it, only when the cache is
    at the mark or more than ``spare`` wait at the server, and not before the last decrease has had its effect, that is
    while more is there than the limit allows: requests are long, and looks are frequent.
    """
    if stats.cache >= bounds.high_water or stats.waiting > bounds.spare:
        return limit if load > limit else max(bounds.low, int(limit * DECREASE))
    if wanted and load >= limit and stats.waiting == 0:
        return min(bounds.high, limit + bounds.step)
    return limit
