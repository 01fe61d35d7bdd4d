"""Supervised fine-tuning: the same step as RL, fed with cross-entropy tokens."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from intellect_jax.bridge.tokenizer import load_tokenizer
from intellect_jax.data.sft import sft_batches
from intellect_jax.monitor import watchdog
from intellect_jax.monitor.metrics import Metrics
from intellect_jax.trainer.optimizer import sft_rates
from intellect_jax.trainer.report import sft_metrics
from intellect_jax.trainer.setup import Trainer
from intellect_jax.trainer.step import TrainState

log = logging.getLogger(__name__)


def run_sft(trainer: Trainer, state: TrainState, run_dir: Path, metrics: Metrics) -> TrainState:
    """Runs ``sft.steps`` supervised steps from the first; returns the state after them."""
    config = trainer.config
    rates = sft_rates(config.sft)
    batches = sft_batches(config, load_tokenizer(run_dir / "tokenizer"), seed=config.seed)
    for step in range(1, config.sft.steps + 1):
        watchdog.progress(f"supervised step {step}")
        start = time.time()
        batch = next(batches)
        ready = time.time()
        state, sums = trainer.step(state, batch, rates[step - 1])
        times = {"time/wait_s": ready - start, "time/step_s": time.time() - ready}
        metrics.log(step, {**sft_metrics(batch, sums), **times, "optimizer/learning_rate": float(rates[step - 1])})
    log.info("supervised fine-tuning done: %d steps", config.sft.steps)
    return state
