"""Held-out evaluation through the same rollout path as training."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

import numpy as np

from intellect_jax.orchestrator.rollouts import FAILURES, RolloutRunner
from intellect_jax.types import Rollout, Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """Rollouts of the held-out prompts, in their order; one that failed at every attempt counts as reward 0."""

    rollouts: list[Rollout]

    def metrics(self) -> dict[str, float]:
        """Means over all prompts, per ``eval/`` name; reward's per environment too when there are several."""
        names = sorted({name for r in self.rollouts for name in r.metrics})
        means = {f"eval/{n}": float(np.mean([r.metrics.get(n, 0.0) for r in self.rollouts])) for n in names}
        reward = float(np.mean([r.reward or 0.0 for r in self.rollouts]))
        counts = {"eval/prompts": len(self.rollouts), "eval/failed": sum(r.error is not None for r in self.rollouts)}
        return {"eval/reward": reward, **means, **counts}


def eval_tasks(sizes: dict[str, int], prompts: int) -> list[Task]:
    """The first held-out examples of every environment in turn, at most ``prompts`` in all."""
    longest = max(sizes.values(), default=0)
    every = [(env, i) for i in range(longest) for env, size in sizes.items() if i < size]
    return [Task(k, env, "eval", i) for k, (env, i) in enumerate(every[:prompts])]


async def evaluate(runner: RolloutRunner, tasks: list[Task], temperature: float, attempts: int) -> Evaluation:
    """One rollout per task, again where it fails; all together: the fleet client bounds what is in flight."""

    async def one(task: Task) -> Rollout:
        try:
            opening = await runner.prompt(task)
        except FAILURES as error:
            return Rollout(task, 0, -1, temperature, error=f"{type(error).__name__}: {error}")
        return await runner.run(task, opening, 0, temperature)

    async def insist(task: Task) -> Rollout:
        for _ in range(attempts - 1):
            rollout = await one(task)
            if rollout.error is None:
                return rollout
            log.warning("held-out task %d failed and is tried again: %s", task.task_id, rollout.error)
        return await one(task)

    return Evaluation(list(await asyncio.gather(*(insist(task) for task in tasks))))
