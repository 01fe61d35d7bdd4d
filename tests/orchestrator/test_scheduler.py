"""The scheduler's invariants, against groups that take random time and a trainer that steps at random moments."""

import asyncio
import random

import pytest

from intellect_jax.config import default_config
from intellect_jax.orchestrator.curriculum import Curriculum
from intellect_jax.orchestrator.groups import Group
from intellect_jax.orchestrator.outcomes import Outcomes
from intellect_jax.orchestrator.scheduler import Scheduler
from intellect_jax.types import Node, Rollout, Task, Version


def make_config(bound=2, inflight=4, steps=12):
    config = default_config()
    config.orchestrator.update(batch_size=4, group_size=2, max_off_policy_steps=bound, max_inflight_groups=inflight)
    config.trainer.max_steps = steps
    return config


def make_group(task, versions, rewards=(0.0, 1.0), lineage=0):
    nodes = [Node("assistant", "x", [1] * len(versions), sampled=True, versions=list(versions))]
    rollouts = [Rollout(task, i, lineage, 1.0, nodes=nodes, reward=r) for i, r in enumerate(rewards)]
    return Group(task, rollouts, [])


class World:
    """A fleet and a trainer around a real scheduler: groups last 1-9 ms, a step 1-9 ms, the queue holds one batch."""

    def __init__(self, config, seed, no_signal=0.2):
        self.rng = random.Random(seed)
        self.lineage = 0
        self.no_signal = no_signal
        self.version = 0
        self.batches: dict[int, list[Group]] = {}
        self.taken = 0
        self.most_running = 0
        curriculum = Curriculum(0, {"e": 1.0}, {"e": 1000})
        self.scheduler = Scheduler(config, curriculum, self.start, self.cut, self.full)

    async def start(self, task):
        self.most_running = max(self.most_running, len(self.scheduler.running))
        versions = []
        for _ in range(3):
            versions.append(self.version)
            await asyncio.sleep(self.rng.uniform(0.0003, 0.003))
        signal = random.Random(task.task_id).random() > self.no_signal
        return make_group(task, versions, (0.0, 1.0) if signal else (1.0, 1.0), self.lineage)

    async def cut(self, step, groups, dropped):
        assert not self.full()
        self.batches[step] = groups

    def full(self):
        return sum(step > self.taken for step in self.batches) >= 1

    async def train(self, steps):
        while self.version < steps:
            self.taken = self.version + 1
            self.scheduler.changed.set()
            while self.taken not in self.batches:
                await asyncio.sleep(0.0005)
            await asyncio.sleep(self.rng.uniform(0.001, 0.009))
            self.version += 1
            self.scheduler.set_version(Version(self.lineage, self.version))

    async def play(self, steps):
        self.scheduler.set_version(Version(0, 0))
        await asyncio.wait_for(asyncio.gather(self.scheduler.run(), self.train(steps)), 30)


@pytest.mark.parametrize("bound", [0, 1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_no_batch_ever_holds_a_token_staler_than_the_bound(bound, seed):
    config = make_config(bound)
    world = World(config, seed)
    asyncio.run(world.play(config.trainer.max_steps))
    assert sorted(world.batches) == list(range(1, config.trainer.max_steps + 1))
    for step, groups in world.batches.items():
        staleness = [step - 1 - v for group in groups for rollout in group.rollouts for v in rollout.versions()]
        assert max(staleness) <= bound and min(staleness) >= 0
        assert len(groups) == 2 and all(group.has_signal for group in groups)
    assert world.most_running <= config.orchestrator.max_inflight_groups
    trained = [group.task.task_id for groups in world.batches.values() for group in groups]
    assert len(trained) == len(set(trained)), "no task is trained twice"
    outcomes = world.scheduler.outcomes
    assert sorted(trained) == outcomes.of("trained")
    assert len(outcomes) == sum(world.scheduler.curriculum.picked.values()), "every dispatched task has an outcome"


def test_synchronous_batches_are_the_same_whatever_finishes_first():
    tasks = []
    for seed in (1, 2, 3):
        world = World(make_config(bound=0), seed)
        asyncio.run(world.play(12))
        tasks.append({step: [g.task for g in groups] for step, groups in world.batches.items()})
    assert tasks[0] == tasks[1] == tasks[2]


def test_asynchronous_rollouts_span_versions():
    world = World(make_config(bound=3, inflight=6), seed=0)
    asyncio.run(world.play(12))
    spans = [len(set(r.versions())) for groups in world.batches.values() for g in groups for r in g.rollouts]
    assert max(spans) > 1


def test_failed_and_old_groups_are_counted_and_replaced():
    async def play():
        config = make_config(bound=1, steps=1)
        outcomes = iter([RuntimeError("broken"), (1.0, 1.0), (0.0, 1.0), (0.0, 1.0)])

        async def start(task):
            outcome = next(outcomes)
            if isinstance(outcome, Exception):
                raise outcome
            return make_group(task, [0], outcome)

        cuts = []

        async def cut(step, groups, dropped):
            cuts.append((step, [g.task.task_id for g in groups], dict(dropped)))

        scheduler = Scheduler(config, Curriculum(0, {"e": 1.0}, {"e": 9}), start, cut, lambda: False)
        scheduler.set_version(Version(0, 0))
        await asyncio.wait_for(scheduler.run(), 10)
        return cuts

    ((step, tasks, dropped),) = asyncio.run(play())
    assert (step, tasks) == (1, [2, 3])
    assert dropped == {"error": 2, "no_signal": 2}


def test_a_restored_ledger_runs_unfinished_tasks_first_and_trained_ones_never_again():
    async def play():
        world = World(make_config(bound=2, steps=12), seed=5)
        world.scheduler.set_version(Version(0, 0))
        running = asyncio.ensure_future(world.scheduler.run())
        training = asyncio.ensure_future(world.train(12))
        while world.version < 4:
            await asyncio.sleep(0.001)
        ledger = world.scheduler.ledger()
        first = [g.task.task_id for groups in world.batches.values() for g in groups]
        assert Outcomes.decode(ledger["outcomes"]).of("trained") == sorted(first)
        for task in (running, training):
            task.cancel()
        again = World(make_config(bound=2, steps=12), seed=6)
        at = max(world.batches)
        again.scheduler.restore(Version(1, at), ledger)
        assert not again.scheduler.may_start(), "nothing starts before the fleet serves the restored version"
        again.version, again.taken, again.lineage = at, at, 1
        again.scheduler.set_version(Version(1, at))
        await asyncio.wait_for(asyncio.gather(again.scheduler.run(), again.train(12)), 30)
        second = [g.task.task_id for groups in again.batches.values() for g in groups]
        return first, second, ledger, again.scheduler.outcomes

    first, second, ledger, outcomes = asyncio.run(play())
    unfinished = {task["task_id"] for task in ledger["unfinished"]}
    assert not set(first) & (set(second) | unfinished)
    assert outcomes.of("trained") == sorted(first + second)
    assert not unfinished - {i for name in ("trained", "no_signal", "stale", "unused") for i in outcomes.of(name)}


def test_rollouts_of_another_lineage_are_dropped():
    async def play():
        config = make_config(bound=2, steps=1)
        lineages = iter([0, 1, 1])

        async def start(task):
            return make_group(task, [0], lineage=next(lineages))

        seen = []

        async def cut(step, groups, dropped):
            seen.append(({r.lineage for g in groups for r in g.rollouts}, dict(dropped)))

        scheduler = Scheduler(config, Curriculum(0, {"e": 1.0}, {"e": 9}), start, cut, lambda: False)
        scheduler.set_version(Version(1, 0))
        await asyncio.wait_for(scheduler.run(), 10)
        return seen

    assert asyncio.run(play()) == [({1}, {"lineage": 2})]


def test_the_curriculum_keeps_ratios_and_visits_every_example_each_epoch():
    def stream(count, picked=None):
        curriculum = Curriculum(7, {"a": 3.0, "b": 1.0}, {"a": 6, "b": 5}, dict(picked or {}))
        return [curriculum.next() for _ in range(count)], curriculum.state()

    tasks, _ = stream(24)
    assert [t.task_id for t in tasks] == list(range(24))
    assert sum(t.env == "a" for t in tasks) == 18
    for epoch in range(3):
        assert sorted(t.index for t in [t for t in tasks if t.env == "a"][6 * epoch : 6 * epoch + 6]) == list(range(6))
    head, state = stream(10)
    assert head + stream(14, state)[0] == tasks, "resuming from the state goes on where it was"
    assert all(isinstance(t, Task) and t.split == "train" for t in tasks)
