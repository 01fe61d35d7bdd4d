"""A small simulation of the asynchronous loop: how many samplers feed the trainer, how stale samples are, who waits.

Requests share the fleet's tokens per second equally, none faster than one request alone goes; answers are as long as a
lognormal says. What starts, when a batch is cut and what is too old follow orchestrator/scheduler.py.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from math import log, sqrt
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

P95 = 1.6448536  # standard deviations that 95% of a normal lie below
STEPS, WARM_UP = 24, 8  # simulated; the first are not counted
ENOUGH = 0.05  # share of its time that a well-fed trainer may wait
_SHARES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0)  # of the fleet that mere arithmetic asks for


class Lengths(NamedTuple):
    """Lognormal answer lengths, tokens."""

    mean: float
    p95: float
    longest: int

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Float64 [count], at least 1 and at most ``longest``."""
        sigma = P95 - sqrt(max(P95**2 - 2 * log(self.p95 / self.mean), 0.0))
        drawn = rng.lognormal(log(self.mean) - sigma**2 / 2, sigma, count)
        return np.clip(np.ceil(drawn), 1, self.longest)


@dataclass(frozen=True)
class Loop:
    """What the simulation depends on; times in seconds, rates in tokens/s."""

    lengths: Lengths
    samplers: int  # GPUs
    sampler_rate: float  # of one GPU with enough requests
    request_rate: float  # of one request, however few there are
    step_seconds: float
    groups_per_batch: int
    group_size: int
    max_inflight_groups: int
    max_off_policy_steps: int
    queue_size: int


class Fleet(NamedTuple):
    """What came of it, per step where that makes sense."""

    samplers: int
    step_seconds: float  # from one version to the next
    trainer_idle: float  # share of time
    sampler_idle: float  # share of the tokens that the fleet could have made
    staleness_mean: float  # versions
    staleness_max: int
    dropped: float  # share of groups too old to train

    @property
    def fed(self) -> bool:
        return self.trainer_idle <= ENOUGH


def loop_of(config: ConfigDict, step_seconds: float, samplers: int) -> Loop:
    """From a configuration's ``plan`` and ``orchestrator`` sections."""
    plan, orchestrator = config.plan, config.orchestrator
    mean = plan.response_mean or orchestrator.max_new_tokens / 4
    lengths = Lengths(
        mean, plan.response_p95 or min(3 * mean, orchestrator.max_new_tokens), orchestrator.max_new_tokens
    )
    return Loop(
        lengths,
        samplers,
        plan.sampler_tokens_per_second,
        plan.request_tokens_per_second,
        step_seconds,
        orchestrator.batch_size // orchestrator.group_size,
        orchestrator.group_size,
        orchestrator.max_inflight_groups,
        orchestrator.max_off_policy_steps,
        orchestrator.queue_size,
    )


def balance(loop: Loop, seed: int = 0) -> list[Fleet]:
    """The loop with ever more samplers, around what feeds the trainer if nothing ever waits."""
    tokens = loop.groups_per_batch * loop.group_size * loop.lengths.draw(np.random.default_rng(seed), 10_000).mean()
    fair = tokens / loop.step_seconds / loop.sampler_rate
    counts = sorted({max(round(fair * share), 1) for share in _SHARES})
    return [simulate(Loop(**{**vars(loop), "samplers": count}), seed) for count in counts]


def simulate(loop: Loop, seed: int = 0) -> Fleet:
    """Runs until STEPS versions are made; the same seed gives the same figures."""
    state = _Simulation(loop, np.random.default_rng(seed))
    while state.version < STEPS:
        state.advance()
    return state.figures()


@dataclass
class _Group:
    task: int
    version: int  # when it started
    left: int


@dataclass
class _Simulation:
    loop: Loop
    rng: np.random.Generator
    now: float = 0.0
    made: float = 0.0  # tokens that every request that runs all the time has made
    version: int = 0
    next_step: int = 1
    tasks: int = 0
    requests: list[tuple[float, int, _Group]] = field(default_factory=list)  # heap by ``made`` at their end
    running: int = 0  # groups
    finished: list[_Group] = field(default_factory=list)
    queue: list[list[_Group]] = field(default_factory=list)
    step_ends: float | None = None
    marks: list[tuple[float, float, float, int, int]] = field(default_factory=list)  # at each version
    busy: float = 0.0
    tokens: float = 0.0
    dropped: int = 0
    started: int = 0
    staleness: list[list[int]] = field(default_factory=list)  # by step

    def advance(self) -> None:
        """Starts what may start, then goes to the next event."""
        self._settle()
        rate = self._rate()
        finish = self.now + (self.requests[0][0] - self.made) / rate if self.requests else np.inf
        then = min(finish, np.inf if self.step_ends is None else self.step_ends)
        assert then < np.inf, "the simulated loop stands still"
        self.tokens += rate * len(self.requests) * (then - self.now)
        self.busy += (then - self.now) * (self.step_ends is not None)
        self.made, self.now = self.made + rate * (then - self.now), then
        if then == finish:
            self._finish_request()
        else:
            self._finish_step()

    def _rate(self) -> float:
        """Tokens per second of each request."""
        fleet = self.loop.samplers * self.loop.sampler_rate
        return min(self.loop.request_rate, fleet / len(self.requests)) if self.requests else 0.0

    def _settle(self) -> None:
        while True:
            self._cut()
            if self.step_ends is None and self.queue:
                self.staleness.append([len(self.staleness) - group.version for group in self.queue.pop(0)])
                self.step_ends = self.now + self.loop.step_seconds
            elif self._may_start():
                self._start()
            else:
                return

    def _may_start(self) -> bool:
        loop = self.loop
        landing = self.next_step + (self.running + len(self.finished)) // loop.groups_per_batch
        fresh = landing - 1 - self.version <= loop.max_off_policy_steps
        return self.running < loop.max_inflight_groups and len(self.finished) < loop.groups_per_batch and fresh

    def _start(self) -> None:
        group = _Group(self.tasks, self.version, self.loop.group_size)
        for length in self.loop.lengths.draw(self.rng, self.loop.group_size):
            heapq.heappush(self.requests, (self.made + length, self.started, group))
            self.started += 1
        self.tasks, self.running = self.tasks + 1, self.running + 1

    def _finish_request(self) -> None:
        _, _, group = heapq.heappop(self.requests)
        group.left -= 1
        if group.left == 0:
            self.running -= 1
            self.finished.append(group)

    def _cut(self) -> None:
        if len(self.finished) < self.loop.groups_per_batch or len(self.queue) >= self.loop.queue_size:
            return
        young = [g for g in self.finished if self.next_step - 1 - g.version <= self.loop.max_off_policy_steps]
        self.dropped += len(self.finished) - len(young)
        young.sort(key=lambda group: group.task)
        if len(young) >= self.loop.groups_per_batch:
            self.queue.append(young[: self.loop.groups_per_batch])
            self.next_step += 1
            young = young[self.loop.groups_per_batch :]
        self.finished = young

    def _finish_step(self) -> None:
        self.version += 1
        self.step_ends = None
        self.marks.append((self.now, self.busy, self.tokens, self.dropped, self.tasks))

    def figures(self) -> Fleet:
        first, last = self.marks[WARM_UP - 1], self.marks[-1]
        seconds, busy, tokens = (last[i] - first[i] for i in range(3))
        staleness = [s for step in self.staleness[WARM_UP:] for s in step]
        could = self.loop.samplers * self.loop.sampler_rate * seconds
        return Fleet(
            self.loop.samplers,
            float(seconds / (STEPS - WARM_UP)),
            max(0.0, float(1 - busy / seconds)),
            max(0.0, float(1 - tokens / could)),
            float(np.mean(staleness)),
            max(staleness),
            (last[3] - first[3]) / max(last[4] - first[4], 1),
        )
