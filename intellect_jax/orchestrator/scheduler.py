"""Starts groups, bounds their staleness, and cuts batches: one state machine in one coroutine.

Step n consumes batch n and makes version n. A group started now, with version v in the fleet, lands in batch
``next_step + pending // groups_per_batch`` at the earliest, so starting it is allowed while that batch's staleness,
(landing - 1) - v, stays within ``max_off_policy_steps``. What is too old all the same when its batch is cut is dropped.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from typing import Any

from ml_collections import ConfigDict

from intellect_jax.orchestrator.curriculum import Curriculum
from intellect_jax.orchestrator.groups import Group
from intellect_jax.orchestrator.outcomes import Outcomes
from intellect_jax.types import Task, Version

log = logging.getLogger(__name__)

GIVE_UP_AFTER = 64  # groups in a row without one usable rollout: nothing will ever train


class Scheduler:
    """Invariants: at most ``max_inflight_groups`` run; no batch holds a token staler than the bound; of the finished
    groups the earliest tasks go first; nothing starts while a whole batch waits for room in the queue.
    """

    def __init__(
        self,
        config: ConfigDict,
        curriculum: Curriculum,
        start: Callable[[Task], Awaitable[Group]],
        cut: Callable[[int, list[Group], Counter[str]], Awaitable[None]],
        queue_full: Callable[[], bool],
    ):
        self.orch = config.orchestrator
        self.last_step = config.trainer.max_steps
        self.groups_per_batch = self.orch.batch_size // self.orch.group_size
        self.curriculum, self._start, self._cut, self._queue_full = curriculum, start, cut, queue_full
        self.changed = asyncio.Event()  # set whenever there may be something to do
        self.version: Version | None = None  # what the fleet serves; None: nothing may start
        self.next_step = 1
        self.again: deque[Task] = deque()  # tasks of an abandoned lineage, to run first
        self.running: dict[asyncio.Task[Group], Task] = {}
        self.started_at: dict[int, int] = {}  # task id -> version number when it started
        self.finished: dict[int, Group] = {}  # by task id
        self.dropped: Counter[str] = Counter()  # rollouts since the last cut, by reason
        self.outcomes = Outcomes()
        self.last_failure = ""
        self.failures = 0  # groups in a row of which no rollout could be used

    async def run(self) -> None:
        """Until the last batch is cut."""
        while self.next_step <= self.last_step:
            self.changed.clear()
            if self.failures >= GIVE_UP_AFTER:
                raise RuntimeError(f"no rollout of the last {self.failures} groups could be used; {self.last_failure}")
            while self.may_start():
                self.start_one()
            if len(self.finished) >= self.groups_per_batch and not self._queue_full():
                await self._try_cut()
                continue
            await self.changed.wait()
        self.cancel_running()

    def may_start(self) -> bool:
        if self.version is None:
            return False
        pending = len(self.running) + len(self.finished)
        landing = self.next_step + pending // self.groups_per_batch
        return (
            len(self.running) < self.orch.max_inflight_groups
            and len(self.finished) < self.groups_per_batch
            and landing <= self.last_step
            and landing - 1 - self.version.number <= self.orch.max_off_policy_steps
        )

    def start_one(self) -> None:
        task = self.again.popleft() if self.again else self.curriculum.next()
        running = asyncio.ensure_future(self._start(task))
        self.running[running] = task
        self.started_at[task.task_id] = self.version.number if self.version else 0
        self.outcomes.mark(task.task_id, "running")
        running.add_done_callback(self._on_finished)

    def set_version(self, version: Version) -> None:
        """The fleet serves ``version`` now; groups that can no longer make any batch are given up."""
        self.version = version
        for running, task in list(self.running.items()):
            if self.next_step - 1 - self.started_at[task.task_id] > self.orch.max_off_policy_steps:
                running.cancel()
        self.changed.set()

    def restore(self, version: Version, ledger: dict[str, Any]) -> None:
        """Goes back to the ledger of a trainer that starts from ``version``; abandons everything newer."""
        self.version = None
        self.cancel_running()
        self.finished.clear()
        self.dropped.clear()
        self.next_step = version.number + 1
        self.curriculum.picked.update(ledger.get("picked", dict.fromkeys(self.curriculum.picked, 0)))
        self.again = deque(Task(**task) for task in ledger.get("unfinished", []))
        self.outcomes = Outcomes.decode(ledger.get("outcomes", ""))
        self.changed.set()

    def ledger(self) -> dict[str, Any]:
        """What a restored run needs to go on without training a task twice or losing one."""
        unfinished = [*self.running.values(), *(g.task for g in self.finished.values()), *self.again]
        tasks = sorted((vars(task) for task in unfinished), key=lambda task: task["task_id"])
        return {"picked": self.curriculum.state(), "unfinished": tasks, "outcomes": self.outcomes.encode()}

    def cancel_running(self) -> None:
        for running in list(self.running):
            running.cancel()

    def _on_finished(self, done: asyncio.Task[Group]) -> None:
        task = self.running.pop(done)
        self.started_at.pop(task.task_id)
        self.changed.set()
        if done.cancelled():
            over = self.next_step > self.last_step
            reason = "lineage" if self.version is None else "unused" if over else "stale"
            self._drop(task, reason, self.orch.group_size)
        elif done.exception() is not None:
            log.error("group of task %d failed: %r", task.task_id, done.exception(), exc_info=done.exception())
            self.failures, self.last_failure = self.failures + 1, f"task {task.task_id}: {done.exception()!r}"
            self._drop(task, "error", self.orch.group_size)
        else:
            self._keep_if_useful(done.result())

    def _drop(self, task: Task, reason: str, rollouts: int) -> None:
        self.dropped[reason] += rollouts
        if reason != "lineage":  # an abandoned task runs again
            self.outcomes.mark(task.task_id, reason)

    def _keep_if_useful(self, group: Group) -> None:
        self.failures = 0 if group.rollouts else self.failures + 1
        if group.failed:
            self.dropped["error"] += len(group.failed)
            self.last_failure = f"task {group.task.task_id}: {group.failed[0].error}"
            log.warning("%d rollouts failed; %s", len(group.failed), self.last_failure)
        lineage = self.version.lineage if self.version else None
        if any(rollout.lineage != lineage for rollout in group.rollouts):
            self._drop(group.task, "lineage", len(group.rollouts))
        elif not group.has_signal:
            self._drop(group.task, "no_signal" if group.rollouts else "error", len(group.rollouts))
        else:
            self.finished[group.task.task_id] = group

    async def _try_cut(self) -> None:
        """Drops what became too old; cuts the next batch if enough is left."""
        for task_id, group in list(self.finished.items()):
            if self.next_step - 1 - group.oldest_version > self.orch.max_off_policy_steps:
                self._drop(group.task, "stale", len(group.rollouts))
                del self.finished[task_id]
        if len(self.finished) < self.groups_per_batch:
            return
        chosen = [self.finished.pop(task_id) for task_id in sorted(self.finished)[: self.groups_per_batch]]
        step, self.next_step = self.next_step, self.next_step + 1
        for group in chosen:
            self.outcomes.mark(group.task.task_id, "trained")
        dropped, self.dropped = self.dropped, Counter()
        await self._cut(step, chosen, dropped)
