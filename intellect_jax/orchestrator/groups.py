"""Groups: all rollouts of one prompt, their advantages, and whether they teach anything."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np
from ml_collections import ConfigDict

from intellect_jax.algorithms.advantages import ADVANTAGES
from intellect_jax.orchestrator.rollouts import FAILURES, RolloutRunner
from intellect_jax.types import Rollout, Task


@dataclass
class Group:
    """A finished group. ``rollouts`` are those that can be trained on; ``failed`` carry errors."""

    task: Task
    rollouts: list[Rollout]
    failed: list[Rollout]

    @property
    def has_signal(self) -> bool:
        """Whether some rollout did better than another: without that every advantage is 0."""
        rewards = {rollout.reward for rollout in self.rollouts}
        return len(rewards) > 1

    @property
    def oldest_version(self) -> int:
        return min(version for rollout in self.rollouts for version in rollout.versions())


async def run_group(runner: RolloutRunner, config: ConfigDict, task: Task) -> Group:
    """Runs the group's rollouts together and gives each its advantage."""
    try:
        opening = await runner.prompt(task)
    except FAILURES as error:
        failed = Rollout(task, 0, -1, config.orchestrator.temperature, error=f"{type(error).__name__}: {error}")
        return Group(task, [], [failed])
    temperature = config.orchestrator.temperature
    size = config.orchestrator.group_size
    rollouts = await asyncio.gather(*(runner.run(task, opening, i, temperature) for i in range(size)))
    good = [r for r in rollouts if r.error is None]
    if good:
        rewards = np.array([r.reward for r in good], np.float64)
        for rollout, advantage in zip(good, ADVANTAGES[config.algorithm.advantage](rewards), strict=True):
            rollout.advantage = float(advantage)
    return Group(task, good, [r for r in rollouts if r.error is not None])
