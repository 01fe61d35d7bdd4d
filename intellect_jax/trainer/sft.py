"""Supervised fine-tuning: the same step as RL, fed with cross-entropy tokens."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from intellect_jax.bridge.checkpoint import Checkpoints
from intellect_jax.bridge.tokenizer import load_tokenizer
from intellect_jax.data.sft import sft_batches
from intellect_jax.monitor import watchdog
from intellect_jax.monitor.metrics import Metrics
from intellect_jax.parallel.processes import anywhere, is_first, meet
from intellect_jax.trainer.optimizer import sft_rates
from intellect_jax.trainer.report import sft_metrics
from intellect_jax.trainer.setup import Trainer
from intellect_jax.trainer.step import TrainState

log = logging.getLogger(__name__)

FOLDER = "checkpoints-sft"  # of a run directory; gone once step 0 of RL is saved


def run_sft(trainer: Trainer, run_dir: Path, stopping: Callable[[], bool] = lambda: False) -> TrainState | None:
    """The state after ``sft.steps`` supervised steps, or None when ``stopping()`` ended them early.

    Any of several processes may be told to stop. Saves every ``checkpoint.every`` steps and when stopped, and goes on
    after the newest checkpoint: the result is that of an unbroken run, bit for bit.
    """
    config = trainer.config
    checkpoints = Checkpoints(run_dir / FOLDER, keep=config.checkpoint.keep)
    restored = checkpoints.restore(trainer.abstract_state)
    state, done = (TrainState(*restored.state), restored.step) if restored else (trainer.init_state(), 0)
    if done:
        log.info("supervised fine-tuning goes on after step %d", done)
    rates, every = sft_rates(config.sft), config.checkpoint.every
    share, tokenizer = trainer.share, load_tokenizer(run_dir / "tokenizer")
    batches = sft_batches(config, tokenizer, seed=config.seed, start_step=done, part=share.part, parts=share.parts)
    stopped = anywhere(stopping())
    metrics = Metrics(run_dir, "sft", tensorboard=config.monitor.tensorboard, speaks=is_first())
    with closing(metrics):
        while done < config.sft.steps and not stopped:
            done += 1
            watchdog.progress(f"supervised step {done}")
            start = time.time()
            batch = next(batches)
            ready = time.time()
            state, sums = trainer.step(state, batch, rates[done - 1])
            times = {"time/wait_s": ready - start, "time/step_s": time.time() - ready}
            counts = sft_metrics(trainer.counts(batch), sums)
            metrics.log(done, {**counts, **times, "optimizer/learning_rate": float(rates[done - 1])})
            stopped = anywhere(stopping())
            if done < config.sft.steps and (stopped or (every and done % every == 0)):
                checkpoints.save(done, state, {})
    checkpoints.close()
    log.info("supervised fine-tuning: %d of %d steps done", done, config.sft.steps)
    return state if done == config.sft.steps else None


def forget_sft(run_dir: Path) -> None:
    """Deletes the checkpoints of supervised steps."""
    meet("supervised fine-tuning is over")
    if is_first():
        shutil.rmtree(run_dir / FOLDER, ignore_errors=True)
