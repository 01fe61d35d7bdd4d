"""Evaluations: every prompt once, failures tried again, and what still fails counts as 0."""

import asyncio

from intellect_jax.orchestrator.evaluate import eval_tasks, evaluate
from intellect_jax.transport.jobs import JobError
from intellect_jax.types import Rollout


class Flaky:
    """Fails on task k until its k-th try, the odd ones in ``prompt``."""

    def __init__(self):
        self.tries = {}

    async def prompt(self, task):
        self.tries[task.task_id] = self.tries.get(task.task_id, 0) + 1
        if task.task_id % 2 and self.tries[task.task_id] < task.task_id:
            raise JobError("no prompt")
        return []

    async def run(self, task, messages, sample_index, temperature):
        assert sample_index == 0 and temperature == 0.5
        error = None if self.tries[task.task_id] >= task.task_id else "no luck"
        return Rollout(task, 0, 0, temperature, error=error, reward=None if error else 1.0)


def test_what_fails_is_tried_again_and_then_counts_as_nothing():
    runner = Flaky()
    tasks = eval_tasks({"e": 5}, prompts=9)
    metrics = asyncio.run(evaluate(runner, tasks, 0.5, attempts=3)).metrics()
    assert runner.tries == {0: 1, 1: 1, 2: 2, 3: 3, 4: 3}
    assert metrics == {"eval/reward": 4 / 5, "eval/prompts": 5, "eval/failed": 1}


def test_environments_take_turns():
    tasks = eval_tasks({"a": 2, "b": 9}, prompts=6)
    assert [(t.env, t.index) for t in tasks] == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("b", 2), ("b", 3)]
    assert {t.split for t in tasks} == {"eval"} and [t.task_id for t in tasks] == list(range(6))
