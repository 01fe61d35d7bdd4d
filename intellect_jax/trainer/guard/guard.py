"""The exactness guard: trainer and sampler must give the same tokens the same log-probabilities, or the run ends.

Only where they hold the same weights can that be asked: for tokens of the version that the trainer holds. All of a
trainer's first batch are such, since it starts a new lineage; later on those of rollouts that end under the newest
version. Where those are too few, as in an asynchronous run, the version that most rollouts end under is read back from
the weight store, as the sampler read it. So the first batch is looked at before its step is taken, then one microbatch
of a batch every ``guard.every`` steps, and at once when the sums that every step makes look bad.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from intellect_jax.bridge.tokenizer import load_tokenizer
from intellect_jax.errors import Hopeless
from intellect_jax.models.config import ModelConfig
from intellect_jax.models.transformer import Params
from intellect_jax.monitor import watchdog
from intellect_jax.parallel.processes import gathered, is_first, meet
from intellect_jax.trainer.guard import story
from intellect_jax.trainer.guard.again import Replay, read_back
from intellect_jax.trainer.guard.comparison import settled
from intellect_jax.trainer.guard.programs import Programs
from intellect_jax.trainer.guard.suspects import Circumstances, suspects
from intellect_jax.trainer.setup import Trainer
from intellect_jax.transport.reading import WeightError
from intellect_jax.transport.weights import WeightStore
from intellect_jax.types import PackedBatch, Version

log = logging.getLogger(__name__)

BOUNDS = {"float32": 1e-3, "bfloat16": 0.05}  # nats, where guard.max_error is 0
ENOUGH = 64  # tokens that a check needs: of fewer, one outlier of bfloat16 would make the mean
PATIENCE = 20  # batches in a row without enough tokens after which it says so
ALARM = 2.0  # bounds that the root mean square of a step's differences may reach without a check out of turn


class Guard:
    """Looks at batches before they are trained.

    Invariants: every process comes to the same verdict; after :meth:`prepare` nothing compiles in a healthy run; at
    most one forward pass of one microbatch is spent on a step.
    """

    def __init__(self, trainer: Trainer, run_dir: Path, programs: Programs | None = None):
        config = trainer.config
        self._trainer, self._run_dir = trainer, run_dir
        self._enabled, self._every = config.guard.enabled, config.guard.every
        self._programs = programs or Programs(trainer)
        self.bound = bound(config)
        self._kept_cache = config.sampler.on_update == "keep_kv"
        self._store = WeightStore(run_dir / "weights", config.weights.keep)
        # Each of several processes would read, and hold in memory, all of a version; adapters are published merged.
        self._reads_back = jax.process_count() == 1 and not config.lora.rank
        self._due = 0  # the step before which the next check is to be
        self._missed = 0  # batches in a row that were due and had too few tokens
        self._warned = False
        self._passed: list[int] = []

    def prepare(self) -> None:
        """Compiles, so that no check does; call before a run is warm."""
        if self._enabled:
            self._programs.prepare()

    def check(self, params: Params, batch: PackedBatch, version: Version) -> dict[str, float]:
        """Metrics of the check before this batch's step, {} where none was due. ``params``: what trains of ``version``.

        Raises:
            Hopeless: the two sides differ by more than the bound; ``<run>/guard.json`` says more.
        """
        if not self._enabled or batch.step < self._due:
            return {}
        watchdog.progress(f"checking log-probabilities before step {batch.step}")
        micro, count = self._choose(batch)
        if micro is None and self._reads_back:
            micro, count, params, version = self._look_back(batch, params, version)
        if micro is None:
            self._miss()
            return {}
        arrays = self._programs.place(micro)
        found = self._programs.distance(params, arrays)
        # Not a number is never below a bound.
        if not found["error"] <= self.bound:
            self._stop(params, micro, version)
        self._passed.append(batch.step)
        self._due, self._missed = batch.step + self._every, 0
        return {"guard/error": found["error"], "guard/largest": found["largest"], "guard/tokens": count}

    def hear(self, step: int, fresh_kl_sum: float, fresh: float) -> None:
        """What a step itself saw of its tokens of the newest version: where it looks bad, the next batch is checked."""
        # r - 1 - log r is half of Δ squared where Δ is small.
        if not self._kept_cache and not math.sqrt(2 * max(fresh_kl_sum, 0.0) / max(fresh, 1)) <= ALARM * self.bound:
            self._due = step + 1

    def _look_back(
        self, batch: PackedBatch, params: Params, version: Version
    ) -> tuple[PackedBatch | None, int, Params, Version]:
        """:meth:`_choose` for the version with most tokens to compare, and its parameters, where both can be had."""
        staleness = batch.arrays["staleness"]
        lags = staleness[settled(batch.arrays, self._kept_cache) & (staleness > 0)]
        lag = int(np.bincount(lags).argmax()) if lags.size else 0
        micro, count = self._choose(batch, lag)
        older = Version(version.lineage, version.number - lag)
        if micro is None:
            return None, count, params, version
        try:
            return micro, count, read_back(self._trainer, self._store, older), older
        except WeightError as error:
            log.info("version %s cannot be compared with the sampler's any more: %s", older, error)
            return None, count, params, version

    def _choose(self, batch: PackedBatch, lag: int = 0) -> tuple[PackedBatch | None, int]:
        """The microbatch with the most tokens to compare, ``loss_mask`` being these, and how many tokens they are.

        ``lag``: of the version so many before the trainer's.

        None where there are too few. The first process chooses; each has its part of every microbatch.
        """
        fresh = settled(batch.arrays, self._kept_cache) & (batch.arrays["staleness"] == lag)
        counts = fresh.sum(axis=(1, 2))
        at = int(gathered([int(counts.argmax())])[0, 0])
        counted = int(counts[at]) if self._trainer.share.counts else 0
        count = int(gathered([counted]).sum())
        if count < ENOUGH:
            return None, count
        arrays = {name: array[at : at + 1] for name, array in batch.arrays.items()}
        return PackedBatch(batch.step, arrays | {"loss_mask": fresh[at : at + 1]}), count

    def _miss(self) -> None:
        """The check stays due: the next batch may have what this one lacks."""
        self._missed += 1
        if self._missed == PATIENCE and not self._warned:
            self._warned = True
            log.warning(
                "no batch of the last %d had %d tokens of a version that is at hand: the guard cannot compare trainer "
                "and sampler, see guard/tokens; lower orchestrator.queue_size or max_inflight_groups",
                PATIENCE,
                ENOUGH,
            )

    def _stop(self, params: Params, micro: PackedBatch, version: Version) -> None:
        """Finds out why, writes it down and raises Hopeless; every process goes through the same."""
        watchdog.progress("finding out why trainer and sampler differ")
        log.error("trainer and sampler differ before step %d: finding out why", micro.step)
        arrays = self._programs.place(micro)
        seen = self._programs.compare(params, arrays)
        tokenizer = load_tokenizer(self._run_dir / "tokenizer")
        known = circumstances(
            self._trainer.config, self._trainer.cfg, version, tuple(self._passed), len(tokenizer), self.bound
        )
        again = Replay(self._trainer, self._programs, params, arrays, self._store, version).again()
        found = suspects(seen, again, known)
        file = self._run_dir / story.FILE
        if is_first():
            story.write(file, seen, found, known, micro.step, tokenizer)
        meet("the guard's findings are written")
        raise Hopeless(story.message(seen, found, known, micro.step, tokenizer, file))


def bound(config: ConfigDict) -> float:
    """Largest mean error that passes, in nats."""
    if config.guard.max_error:
        return config.guard.max_error
    exact = {config.model.compute_dtype, config.sampler.dtype, config.weights.dtype} == {"float32"}
    return BOUNDS["float32" if exact else "bfloat16"]


def circumstances(
    config: ConfigDict, cfg: ModelConfig, version: Version, passed: tuple[int, ...], vocabulary: int, limit: float
) -> Circumstances:
    """What the configuration tells a diagnosis."""
    vllm = config.sampler.backend == "vllm"
    dtypes = {
        "trainer": config.model.compute_dtype,
        "sampler": config.sampler.dtype,
        "weights": config.weights.dtype,
        "the sampler's head": config.sampler.dtype if vllm and config.sampler.head_dtype == "model" else "float32",
    }
    return Circumstances(version, limit, passed, vocabulary, dtypes, cfg.moe_layers)
