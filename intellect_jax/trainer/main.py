"""The trainer role: supervised warm-up, then RL, then export."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from intellect_jax.bridge.checkpoint import Checkpoints
from intellect_jax.monitor import watchdog
from intellect_jax.monitor.compilations import CompilationCounter
from intellect_jax.parallel import processes
from intellect_jax.trainer import setup
from intellect_jax.trainer.rl import RLLoop
from intellect_jax.trainer.setup import Trainer
from intellect_jax.trainer.sft import forget_sft, run_sft
from intellect_jax.trainer.step import TrainState
from intellect_jax.transport.weights import WeightStore
from intellect_jax.types import Version

log = logging.getLogger(__name__)

START_ME_AGAIN = 70  # stopped from outside before the last step: the supervisor starts it again unless it ends the run
LOOK = 3.0  # seconds, several times what lies between two heartbeats


class PeerLost(Exception):
    """Another process of this trainer is gone, and nothing can be computed without it."""


def main(config: ConfigDict, run_dir: Path, index: int | None = None) -> int:
    """Trains until done or told to stop (SIGTERM: after the step in hand, with a checkpoint).

    ``index``: which of the trainer's processes this is, None where it is the only one. Any of them may be told to stop.
    """
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
    watchdog.progress("waiting for the other trainer processes")
    processes.join(config.distributed, index)
    try:
        code = _train(config, run_dir, lambda: bool(stop))
    except Exception as error:
        gone = _silent_peers(run_dir, index)
        if gone:
            raise PeerLost(f"{', '.join(gone)} died or hangs, which ends this process too") from error
        raise
    watchdog.progress("waiting for the other trainer processes to end")
    processes.leave()
    return code


def _train(config: ConfigDict, run_dir: Path, stopping: Callable[[], bool]) -> int:
    compilations = CompilationCounter()
    trainer = setup.create(config, run_dir)
    checkpoints = Checkpoints(run_dir / "checkpoints", config.checkpoint.keep, config.checkpoint.keep_every)
    watchdog.progress("restoring or making the state")
    started = _start(trainer, checkpoints, run_dir, stopping)
    if started is None:
        return START_ME_AGAIN
    state, step, ledger = started
    if config.trainer.max_steps:
        lineage = processes.of_first(_next_lineage(run_dir))
        loop = RLLoop(trainer, state, Version(lineage, step), ledger, run_dir)
        loop.run(checkpoints, compilations, stopping)
        state = loop.state
        if loop.version.number < config.trainer.max_steps:
            return START_ME_AGAIN
        _export(trainer, state, run_dir)
        loop.leave()
    else:
        checkpoints.wait()
        _export(trainer, state, run_dir)
    watchdog.progress("closing the checkpoints")
    checkpoints.close()
    return 0


def _silent_peers(run_dir: Path, index: int | None) -> list[str]:
    """The trainer processes that give no sign of life, in a look of a few seconds at their heartbeats."""
    if index is None:
        return []
    files = sorted((run_dir / watchdog.FOLDER).glob("trainer-*"))
    before = {file: file.stat().st_mtime_ns for file in files}
    time.sleep(LOOK)
    return [file.name for file in files if file.stat().st_mtime_ns == before[file]]


def _start(
    trainer: Trainer, checkpoints: Checkpoints, run_dir: Path, stopping: Callable[[], bool]
) -> tuple[TrainState, int, dict] | None:
    """The newest good checkpoint, or a fresh state after its supervised warm-up (saved as step 0).

    None when the warm-up was stopped.
    """
    restored = checkpoints.restore(trainer.abstract_state)
    if restored is not None:
        log.info("resuming after step %d", restored.step)
        return TrainState(*restored.state), restored.step, restored.ledger
    if not trainer.config.sft.steps:
        return trainer.init_state(), 0, {}
    warm = run_sft(trainer, run_dir, stopping)
    if warm is None:
        return None
    state = trainer.fresh_state(warm.params)  # RL starts with fresh moments
    checkpoints.save(0, state, {})
    checkpoints.wait()
    forget_sft(run_dir)
    return state, 0, {}


def _next_lineage(run_dir: Path) -> int:
    """0 for a first start, else one more than any lineage that ever published."""
    latest = WeightStore(run_dir / "weights").latest()
    return 0 if latest is None else latest.lineage + 1


def _export(trainer: Trainer, state: TrainState, run_dir: Path) -> None:
    if trainer.config.export.enabled:
        watchdog.progress("exporting")
        folder = run_dir / "export"
        setup.export_policy(trainer.config, trainer.policy(state), folder, run_dir / "tokenizer")
        log.info("exported to %s", folder)
