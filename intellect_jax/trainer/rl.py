"""The RL loop: fetch batch n, step, publish version n, now and then a checkpoint."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ml_collections import ConfigDict

from intellect_jax.bridge.checkpoint import Checkpoints
from intellect_jax.monitor import watchdog
from intellect_jax.monitor.compilations import CompilationCounter
from intellect_jax.monitor.metrics import Metrics
from intellect_jax.parallel.processes import anywhere, gathered, is_first
from intellect_jax.trainer.guard.guard import Guard
from intellect_jax.trainer.optimizer import rl_rates
from intellect_jax.trainer.publish import Publisher
from intellect_jax.trainer.report import rl_metrics
from intellect_jax.trainer.setup import Trainer
from intellect_jax.trainer.step import TrainState
from intellect_jax.transport.batches import CUT, BatchClient
from intellect_jax.transport.nccl.sender import NcclServing
from intellect_jax.transport.relay.serve import Serving
from intellect_jax.transport.relay.server import TOKEN_VARIABLE
from intellect_jax.transport.weights import WeightStore
from intellect_jax.types import PackedBatch, Version

log = logging.getLogger(__name__)

ROUND = 1.0  # seconds
LINGER = 60.0  # seconds


class RLLoop:
    """Owns the state between steps. Every process of the trainer runs it; the first one speaks for all.

    Invariants: batch n is trained exactly once in a lineage; version n is on disk before batch n+1 is asked for; a
    checkpoint of step n holds the orchestrator's ledger as of the cut of batch n.
    """

    def __init__(self, trainer: Trainer, state: TrainState, version: Version, ledger: dict[str, Any], run_dir: Path):
        config = trainer.config
        self.trainer, self.state, self.version, self.ledger = trainer, state, version, ledger
        self.rates = rl_rates(config.trainer.optimizer, config.trainer.max_steps)
        self.store = WeightStore(
            run_dir / "weights",
            config.weights.keep,
            most_bytes=config.weights.keep_gib * 2**30,
            least=config.orchestrator.max_off_policy_steps + 2,
        )
        self.publisher = Publisher(config, self.store)
        self.guard = Guard(trainer, run_dir)
        self.metrics = Metrics(run_dir, "trainer", tensorboard=config.monitor.tensorboard, speaks=is_first())
        self.serving = _serve(config, self.store) if is_first() else None
        share = trainer.share
        self.client = BatchClient(
            config.orchestrator.address, timeout=config.trainer.batch_timeout, part=share.part, parts=share.parts
        )

    def run(self, checkpoints: Checkpoints, compilations: CompilationCounter, stopping: Callable[[], bool]) -> None:
        """Steps until ``trainer.max_steps``, or until ``stopping()`` says so; ends with a checkpoint."""
        config = self.trainer.config
        manifest = self.publish()
        if is_first():
            self.client.hello(self.version, str(manifest), self.ledger)
        self.guard.prepare()  # while the first batch is being made
        anywhere(False)  # asked here first of all, so that its program is compiled
        compilations.warm()
        saved = self.version.number  # a run that starts here has it on disk, or starts from nothing
        while self.version.number < config.trainer.max_steps and self.one_step(compilations, stopping):
            if config.checkpoint.every and self.version.number % config.checkpoint.every == 0:
                self.save(checkpoints)
                saved = self.version.number
        if self.version.number != saved:
            self.save(checkpoints)
        checkpoints.wait()
        self.metrics.close()

    def one_step(self, compilations: CompilationCounter, stopping: Callable[[], bool]) -> bool:
        """Trains the next batch; False when told to stop before there was one."""
        step = self.version.number + 1
        start = time.time()
        watchdog.progress(f"waiting for batch {step}", waits_for="orchestrator")
        batch = self.next_batch(step, stopping)
        if batch is None:
            return False
        arrived = time.time()
        checked = self.guard.check(self.state.params, batch, self.version)
        ready = time.time()
        watchdog.progress(f"training batch {step}")
        rate = float(self.rates[step - 1])
        self.state, sums = self.trainer.step(self.state, batch, rate)
        stepped = time.time()
        if not math.isfinite(sums["grad_norm"]):
            raise FloatingPointError(
                f"step {step}: gradient norm {sums['grad_norm']}; nothing of it is published or saved"
            )
        self.version = Version(self.version.lineage, step)
        self.ledger = batch.info["ledger"]
        manifest = self.publish()
        if is_first():
            self.client.published(self.version, str(manifest), self.ledger)
        row = {"optimizer/learning_rate": rate, "compile/after_warmup": compilations.after_warmup, **checked}
        self._log(batch, sums, ready, stepped, {"time/wait_s": arrived - start, "time/guard_s": ready - arrived, **row})
        return True

    def next_batch(self, step: int, stopping: Callable[[], bool]) -> PackedBatch | None:
        """This process's part of the batch of ``step`` once every process has its own; None when any is told to stop.

        While there is none, processes tell each other every ROUND seconds how they stand.
        """
        batch: PackedBatch | None = None
        damaged: list[Version] = []
        while True:
            until = time.monotonic() + ROUND
            if batch is None:
                waited = partial(self._interrupted, stopping, until)
                batch = self.client.next(step, waited, damaged.append)
            mend = is_first() and self.version in damaged and not self.store.is_whole(self.version)
            cut = 0 if batch is None else batch.info[CUT]
            stops, mends, cuts = gathered([stopping(), mend, cut]).T
            if stops.any():
                return None
            if mends[0]:
                self.mend()
            elif cuts.all() and len(set(cuts)) == 1:
                return batch
            elif cuts.all():  # one was faster than the hello, or the orchestrator was restarted in between
                batch = None
            damaged.clear()

    @staticmethod
    def _interrupted(stopping: Callable[[], bool], until: float) -> bool:
        return stopping() or time.monotonic() > until

    def publish(self, *, replace_damaged: bool = False) -> Path:
        """Writes the current version to the weight store, each process its part of it; returns its manifest."""
        watchdog.progress(f"publishing version {self.version}")
        if self.serving:
            self.serving.ensure()
        policy = self.trainer.policy(self.state)
        manifest = self.publisher.publish(self.version, policy, replace_damaged=replace_damaged)
        if isinstance(self.serving, NcclServing):
            self.serving.sender.hold(self.version, self.publisher.lying())
        return manifest

    def mend(self) -> None:
        """Publishes the current version again, which nobody can read."""
        log.warning("version %s cannot be read: it is published again", self.version)
        self.publish(replace_damaged=True)
        watchdog.progress(f"waiting for batch {self.version.number + 1}", waits_for="orchestrator")

    def leave(self) -> None:
        """Says that training has ended, and lets the fleet have the last version, which is evaluated now."""
        if is_first():
            self.client.done()
        self.client.close()
        if self.serving:
            watchdog.progress("waiting for the samplers to fetch the last version", waits_for="orchestrator")
            self.serving.linger(self.version, len(self.trainer.config.sampler.urls), LINGER)
            self.serving.close()

    def save(self, checkpoints: Checkpoints) -> None:
        watchdog.progress(f"saving the checkpoint of step {self.version.number}")
        checkpoints.save(self.version.number, self.state, self.ledger)

    def _log(self, batch: PackedBatch, sums, ready, stepped, row) -> None:
        now, counts = time.time(), self.trainer.counts(batch)
        full, delta = self.store.nbytes(self.version) if is_first() else (0, 0)
        times = {
            "time/start": ready,
            "time/end": stepped,
            "time/step_s": stepped - ready,
            "time/publish_s": now - stepped,
            "weights/full_bytes": full,
            "weights/delta_bytes": delta,
            "version/lineage": self.version.lineage,
        }
        learned = rl_metrics(counts, sums, batch.info)
        self.guard.hear(batch.step, sums["fresh_kl_sum"], learned["mismatch/fresh_count"])
        self.metrics.log(batch.step, {**learned, **times, **row})


def _serve(config: ConfigDict, store: WeightStore) -> Serving | NcclServing | None:
    """Versions over HTTP or by NCCL, where the configuration asks for that."""
    if config.weights.transport == "folder":
        return None
    where, token = urlsplit(config.weights.address), os.environ.get(TOKEN_VARIABLE, "")
    host = where.hostname or "*"
    host, port = "" if host == "*" else host, where.port or 0
    return (
        NcclServing(host, port, token)
        if config.weights.transport == "nccl"
        else Serving(store.folder, host, port, token)
    )
