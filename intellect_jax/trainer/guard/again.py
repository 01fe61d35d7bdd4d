"""The trainer's forward pass once more, under another assumption: for a diagnosis, when speed matters no longer."""

from __future__ import annotations

from functools import cached_property, lru_cache, partial
from typing import Any

import jax
import numpy as np

from intellect_jax.bridge.huggingface import from_hf
from intellect_jax.models.transformer import Params, param_axes
from intellect_jax.parallel.mesh import tree_shardings
from intellect_jax.trainer.guard.programs import Programs
from intellect_jax.trainer.guard.suspects import Again
from intellect_jax.trainer.setup import Trainer
from intellect_jax.trainer.step import Batch
from intellect_jax.transport.weights import WeightStore
from intellect_jax.types import Version

VERSIONS = 3  # published ones to try, the newest


class Replay:
    """One microbatch on the device, and the parameters that it was compared with."""

    def __init__(
        self,
        trainer: Trainer,
        programs: Programs,
        params: Params,
        arrays: Batch,
        store: WeightStore,
        version: Version,
    ):
        self._trainer, self._programs, self._params = trainer, programs, params
        self._arrays, self._store, self._version = arrays, store, version

    def again(self) -> Again:
        """What a diagnosis may ask for. Published versions only of a trainer of one process: each would read all."""
        found = sorted((v for v in self._store.versions() if v <= self._version), reverse=True)[:VERSIONS]
        alone = jax.process_count() == 1
        return Again(
            self.at,
            lru_cache(self.under),
            lru_cache(self.with_experts_of),
            self.silenced,
            published=tuple(found) if alone else (),
        )

    def at(self, factor: float) -> np.ndarray:
        arrays = self._arrays | {"temperature": self._arrays["temperature"] * np.float32(factor)}
        return self._programs.logprobs(self._params, arrays)

    def under(self, version: Version) -> np.ndarray:
        """Raises WeightError where the version is gone, and XLA's own error where there is no room for it."""
        params = read_back(self._trainer, self._store, version)
        return self._programs.logprobs(params, self._arrays, whole=True)

    def with_experts_of(self, version: Version) -> np.ndarray:
        current = dict(self._current)
        old = read(self._trainer, self._store, version)
        current["moe_layers"] = {**current["moe_layers"], "moe": {**current["moe_layers"]["moe"]}}
        current["moe_layers"]["moe"]["experts"] = old["moe_layers"]["moe"]["experts"]
        return self._programs.logprobs(placed(self._trainer, current), self._arrays, whole=True)

    def silenced(self, layer: int, expert: int) -> np.ndarray:
        return self._programs.silenced(self._params, self._arrays, layer, expert)

    @cached_property
    def _current(self) -> Params:
        """The version that was compared, as it was published: adapters merged."""
        return read(self._trainer, self._store, self._version)


def read_back(trainer: Trainer, store: WeightStore, version: Version) -> Params:
    """A published version on the devices, as the trainer holds its own; raises WeightError where it is gone."""
    return placed(trainer, read(trainer, store, version))


def read(trainer: Trainer, store: WeightStore, version: Version) -> dict[str, Any]:
    """A published version in host memory."""
    tensors = store.read(store.manifest_path(version))
    return from_hf(tensors.__getitem__, tensors, trainer.cfg)


def placed(trainer: Trainer, params: Params) -> Params:
    where = tree_shardings(trainer.mesh, param_axes(trainer.cfg))
    return jax.tree.map(partial(jax.device_put), params, where)
