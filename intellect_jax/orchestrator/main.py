"""The orchestrator role: one asyncio process, no accelerator, that turns tasks into batches."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from intellect_jax.bridge.shape import model_config
from intellect_jax.bridge.tokenizer import load_tokenizer
from intellect_jax.config import replays_experts
from intellect_jax.files import write_json
from intellect_jax.monitor import watchdog
from intellect_jax.monitor.metrics import Metrics
from intellect_jax.orchestrator.batching import batch_metrics, make_batch
from intellect_jax.orchestrator.curriculum import Curriculum
from intellect_jax.orchestrator.evaluate import eval_tasks, evaluate
from intellect_jax.orchestrator.fleet import Fleet
from intellect_jax.orchestrator.groups import Group, run_group
from intellect_jax.orchestrator.records import write_rollouts
from intellect_jax.orchestrator.rollouts import RolloutRunner
from intellect_jax.orchestrator.scheduler import Scheduler
from intellect_jax.transport.batches import BatchServer
from intellect_jax.transport.jobs import JobPool
from intellect_jax.transport.weights import WeightStore
from intellect_jax.types import Version

log = logging.getLogger(__name__)


def main(config: ConfigDict, run_dir: Path) -> int:
    """Runs until the trainer is done and the last version is evaluated."""
    asyncio.run(_run(config, run_dir))
    return 0


async def _run(config: ConfigDict, run_dir: Path) -> None:
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(Fleet(config.sampler.urls, config))
        jobs = await stack.enter_async_context(
            JobPool(
                config.environments.address,
                max_attempts=config.orchestrator.max_attempts,
                start_timeout=config.launch.start_timeout,
            )
        )
        watchdog.progress("waiting for the fleet to be ready", waits_for="sampler")
        await fleet.wait_ready(config.launch.start_timeout)
        orchestrator = Orchestrator(config, run_dir, fleet, jobs)
        watchdog.progress("waiting for environment workers", waits_for="env")
        await orchestrator.prepare()
        work = asyncio.create_task(orchestrator.evaluate_once() if config.eval.only else orchestrator.train())
        watching = asyncio.create_task(fleet.watch(run_dir))
        try:
            await _first_of(work, watching)
        finally:
            await _cancelled(work, watching)


class Orchestrator:
    """Wires the components together; each of them states its own invariants."""

    def __init__(self, config: ConfigDict, run_dir: Path, fleet: Fleet, jobs: JobPool):
        self.config, self.run_dir, self.fleet, self.jobs = config, run_dir, fleet, jobs
        self.metrics = Metrics(run_dir, "orchestrator", tensorboard=config.monitor.tensorboard)
        moe_layers = model_config(config, run_dir).moe_layers
        self.ahead: deque[dict[str, Any]] = deque()  # what the trainer said that is not handled yet
        tokenizer, replay = load_tokenizer(run_dir / "tokenizer"), replays_experts(config) and bool(moe_layers)
        self.runner = RolloutRunner(config, tokenizer, fleet, jobs, replay, moe_layers)

    async def prepare(self) -> None:
        """Asks the environments for their sizes."""
        timeout = self.config.environments.timeout
        names = [env["name"] for env in self.config.envs]
        self.train_sizes = {n: await self.jobs.call(n, "size", {"split": "train"}, timeout) for n in names}
        self.eval_sizes = {n: await self.jobs.call(n, "size", {"split": "eval"}, timeout) for n in names}

    async def train(self) -> None:
        """Serves trainers until one says that it is done, then evaluates the last version."""
        ratios = {env["name"]: env["ratio"] for env in self.config.envs}
        curriculum = Curriculum(self.config.seed, ratios, self.train_sizes)
        queue_size = self.config.orchestrator.queue_size
        self.server = BatchServer(self.config.orchestrator.address, queue_size, lambda: self.scheduler.changed.set())
        self.scheduler = Scheduler(
            self.config, curriculum, lambda task: run_group(self.runner, self.config, task), self.cut, self.server.full
        )
        self.fleet.on_damaged = self.server.damaged
        serving = asyncio.create_task(self.server.serve())
        following = asyncio.create_task(self.follow_trainer())
        scheduling = asyncio.create_task(self._schedule())
        watching = asyncio.create_task(watchdog.keep_polling(self._standing))
        try:
            await _first_of(following, serving, scheduling, watching)
        finally:
            for task in (watching, serving, scheduling, following):
                task.cancel()
            self.scheduler.cancel_running()
            self.server.close()

    async def follow_trainer(self) -> None:
        """Handles what the trainer says, in order; returns when it is done."""
        final = Version(-1, -1)
        while True:
            message = self.ahead.popleft() if self.ahead else await self.server.messages.get()
            if message["type"] == "done":
                break
            final = Version.parse(message["version"])
            if message["type"] == "hello":
                await self._restart(final, message["ledger"])
            await self._serve_version(final, Path(message["manifest"]))
        await self.evaluate(final, is_final=True)
        write_json(
            self.run_dir / "ledger.json", {**self.scheduler.ledger(), "counts": self.scheduler.outcomes.counts()}
        )

    async def cut(self, step: int, groups: list[Group], dropped: Counter[str]) -> None:
        """Makes batch ``step`` of the groups and queues it with the ledger as of now."""
        epoch, ledger = self.server.epoch, self.scheduler.ledger()
        metrics = batch_metrics(groups, dropped, self.server.found, self.runner.replay) | self.fleet.figures()
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        await asyncio.to_thread(write_rollouts, self.run_dir / "rollouts", f"step-{step:06d}", rollouts)
        batch = await asyncio.to_thread(make_batch, step, groups, self.config, self._routed_shape(groups))
        batch.info = {"metrics": metrics, "ledger": ledger}
        self.metrics.log(step, metrics)
        await self.server.offer(batch, epoch)

    async def evaluate(self, version: Version, *, is_final: bool = False) -> None:
        """Evaluates what the fleet serves and logs it under ``version``."""
        tasks = eval_tasks(self.eval_sizes, self.config.eval.prompts)
        attempts = self.config.orchestrator.max_attempts
        evaluation = await evaluate(self.runner, tasks, self.config.eval.temperature, attempts)
        metrics = evaluation.metrics()
        name = f"eval-{version.number:06d}"
        await asyncio.to_thread(write_rollouts, self.run_dir / "rollouts", name, evaluation.rollouts)
        self.metrics.log(version.number, {**metrics, "eval/version": version.number, "eval/final": int(is_final)})
        log.info("evaluation of version %s: %s", version, metrics)

    async def evaluate_once(self) -> None:
        """`launch eval`: the newest of ``eval.weights``, or whatever the fleet serves."""
        version = Version(0, 0)
        if self.config.eval.weights:
            store = WeightStore(self.config.eval.weights)
            version = store.latest() or version
            await self.fleet.update(store.manifest_path(version), version)
        await self.evaluate(version, is_final=True)

    async def _schedule(self) -> None:
        """Runs the scheduler; again when a trainer that was restarted needs batches once more."""
        while True:
            await self.scheduler.run()
            await self.scheduler.changed.wait()
            self.scheduler.changed.clear()

    async def _restart(self, version: Version, ledger: dict[str, Any]) -> None:
        log.info("a trainer starts from version %s", version)
        self.server.reset(version.number)
        self.scheduler.restore(version, ledger)

    async def _serve_version(self, version: Version, manifest: Path) -> None:
        """Puts a version into the fleet; version 0, and every ``eval.every``-th, is evaluated.

        Rollouts go on meanwhile; the next version waits, so that all of the evaluation is of this one.
        """
        self.server.reason = f"waiting for the fleet to load version {version}"
        is_new = self.scheduler.version is not None  # not that of a trainer that was restored, evaluated already
        every = self.config.eval.every
        due = every and is_new and version.number % every == 0 and version.number < self.config.trainer.max_steps
        due = due or version.number == 0
        if not await self.fleet.update(manifest, version, self._superseded, whole=bool(due)):
            self._serve_oldest(version.lineage)
            return
        self.scheduler.set_version(version)
        self.server.reason = "waiting for rollouts"
        if due:
            await self.evaluate(version)

    def _serve_oldest(self, lineage: int) -> None:
        """While versions come faster than the fleet takes them: groups would wait until it has caught up."""
        before, oldest = self.scheduler.version, self.fleet.oldest()
        if before is not None and oldest is not None and oldest.lineage == lineage and oldest > before:
            self.scheduler.set_version(oldest)

    def _superseded(self) -> bool:
        """Whether the trainer has said of a newer version than the one in hand."""
        while not self.server.messages.empty():
            self.ahead.append(self.server.messages.get_nowait())
        return any(message["type"] in ("hello", "published") for message in self.ahead)

    def _standing(self) -> tuple[str, Any, str]:
        """For the watchdog: what this role is at, what changes with any progress, and whom it waits for."""
        scheduler, fleet = self.scheduler, self.fleet
        mark = (fleet.asked, fleet.answered, scheduler.next_step, scheduler.version, self.server.queued)
        if scheduler.running or fleet.asked > fleet.answered:
            return self.server.reason, mark, "sampler"
        if scheduler.version is None:
            return "waiting for the trainer's first version", mark, "trainer"
        return f"waiting for the trainer to get on with batch {scheduler.next_step - 1}", mark, "trainer"

    def _routed_shape(self, groups: list[Group]) -> tuple[int, int] | None:
        nodes = (node for group in groups for rollout in group.rollouts for node in rollout.nodes)
        routed = next((node.routed_experts for node in nodes if node.routed_experts is not None), None)
        return None if routed is None else (routed.shape[1], routed.shape[2])


async def _first_of(main: asyncio.Task[None], *others: asyncio.Task[None]) -> None:
    """Waits for ``main``; raises at once what ends any other task."""
    done, _ = await asyncio.wait({main, *others}, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


async def _cancelled(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
