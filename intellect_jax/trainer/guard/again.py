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

    def __init__(self, trainer: Trainer, programs: Programs, params: Params, arrays: Batch, store: WeightStore):
        self._trainer, self._programs, self._params = trainer, programs, params
        self._arrays, self._store = arrays, store

    def again(self, version: Version) -> Again:
        """What a diagnosis may ask for. Published versions only of a trainer of one process: each would read all."""
        found = sorted((v for v in self._store.versions() if v <= version), reverse=True)[:VERSIONS]
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
        params = self._placed(self._read(version))
        return self._programs.logprobs(params, self._arrays, whole=True)

    def with_experts_of(self, version: Version) -> np.ndarray:
        current = dict(self._current)
        old = self._read(version)
        current["moe_layers"] = {**current["moe_layers"], "moe": {**current["moe_layers"]["moe"]}}
        current["moe_layers"]["moe"]["experts"] = old["moe_layers"]["moe"]["experts"]
        return self._programs.logprobs(self._placed(current), self._arrays, whole=True)

    def silenced(self, layer: int, expert: int) -> np.ndarray:
        return self._programs.silenced(self._params, self._arrays, layer, expert)

    @cached_property
    def _current(self) -> Params:
        """The newest published version: what the trainer holds, adapters merged."""
        return self._read(max(self._store.versions()))

    def _read(self, version: Version) -> dict[str, Any]:
        tensors = self._store.read(self._store.manifest_path(version))
        return from_hf(tensors.__getitem__, tensors, self._trainer.cfg)

    def _placed(self, params: Params) -> Params:
        where = tree_shardings(self._trainer.mesh, param_axes(self._trainer.cfg))
        return jax.tree.map(partial(jax.device_put), params, where)
