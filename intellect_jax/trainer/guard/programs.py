"""The compiled side of the guard: one microbatch's log-probabilities from the trainer's own forward pass.

Arrays come as the step's do, [1, R, S]; what comes out is the same in every process.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from intellect_jax.models.config import ModelConfig
from intellect_jax.models.transformer import Params
from intellect_jax.parallel.ops import make_ops
from intellect_jax.trainer.guard.comparison import CAP, Comparison
from intellect_jax.trainer.setup import Trainer, batch_specs
from intellect_jax.trainer.step import Batch, StepOptions, batch_logprobs, joined
from intellect_jax.types import PackedBatch

_STREAMS = ("tokens", "positions", "segment_ids", "staleness", "temperature", "sampler_logprobs", "loss_mask")


class Programs:
    """``distance`` is compiled beforehand, for every length of a row; what only a diagnosis needs, when it needs it."""

    def __init__(self, trainer: Trainer):
        self._trainer = trainer
        self._replicated = NamedSharding(trainer.mesh, PartitionSpec())
        options = StepOptions.from_config(trainer.config, make_ops(trainer.config, trainer.mesh))
        self._distances: dict[int, Any] = {}  # by row length S
        self._distance = self._jit(partial(_distance, trainer.cfg, options))
        self._everything = self._jit(partial(_everything, trainer.cfg, options))
        self._silenced = self._jit(partial(_without_expert, trainer.cfg, options))
        self._whole = self._jit(partial(_everything, trainer.cfg, options._replace(lora=None)))

    def _jit(self, function: Any) -> Any:
        return jax.jit(function, out_shardings=self._replicated)

    def prepare(self) -> None:
        """Compiles whatever a healthy run needs."""
        trainer, config = self._trainer, self._trainer.config
        for seq in config.trainer.seq_buckets:
            specs = batch_specs(config, trainer.cfg, trainer.mesh, (1, config.trainer.rows, seq))
            lowered = self._distance.lower(trainer.abstract_state.params, specs, trainer.base)
            self._distances[seq] = lowered.compile()

    def place(self, micro: PackedBatch) -> Batch:
        """On the device, from this process's part of one microbatch."""
        _, rows, seq = micro.shape
        return self._trainer.to_device(micro, (1, rows * self._trainer.share.parts, seq))

    def distance(self, params: Params, arrays: Batch) -> dict[str, float]:
        """Over the tokens of ``loss_mask``: mean of |Δ|, capped, and the largest |Δ|, in nats."""
        with jax.transfer_guard("disallow"):
            found = self._distances[arrays["tokens"].shape[2]](params, arrays, self._trainer.base)
        return {name: float(value) for name, value in jax.device_get(found).items()}

    def compare(self, params: Params, arrays: Batch) -> Comparison:
        """All there is to know of a microbatch; ``params`` as the trainer's state has them."""
        found = jax.device_get(self._everything(params, arrays, self._trainer.base))
        return _comparison({name: np.asarray(value) for name, value in found.items()})

    def logprobs(self, params: Params, arrays: Batch, whole: bool = False) -> np.ndarray:
        """The trainer's log-probabilities [R, S]. ``whole``: ``params`` are a whole policy, not LoRA's adapters."""
        program = self._whole if whole else self._everything
        return np.asarray(program(params, arrays, None if whole else self._trainer.base)["logprobs"])

    def silenced(self, params: Params, arrays: Batch, layer: int, expert: int) -> np.ndarray:
        """:meth:`logprobs` where one expert, of one MoE layer counted among these, adds nothing."""
        return np.asarray(self._silenced(params, arrays, np.int32(layer), np.int32(expert), self._trainer.base))


def _distance(cfg: ModelConfig, options: StepOptions, trained: Params, batch: Batch, base: Params | None = None):
    micro = {name: array[0] for name, array in batch.items()}
    logprobs, _, _ = batch_logprobs(joined(trained, base, options), cfg, micro, options)
    delta = jnp.where(micro["loss_mask"], jnp.abs(logprobs - micro["sampler_logprobs"]), 0.0)
    delta = jnp.where(jnp.isfinite(delta), delta, jnp.inf)
    count = jnp.maximum(jnp.sum(micro["loss_mask"]), 1)
    return {"error": jnp.sum(jnp.minimum(delta, CAP)) / count, "largest": jnp.max(delta)}


def _everything(
    cfg: ModelConfig, options: StepOptions, trained: Params, batch: Batch, base: Params | None = None
) -> dict[str, Array]:
    micro = {name: array[0] for name, array in batch.items()}
    logprobs, _, routed = batch_logprobs(joined(trained, base, options), cfg, micro, options)
    return {"logprobs": logprobs, "routed": options.ops.unshuffle(routed), **{name: micro[name] for name in _STREAMS}}


def _without_expert(
    cfg: ModelConfig,
    options: StepOptions,
    trained: Params,
    batch: Batch,
    layer: Array,
    expert: Array,
    base: Params | None = None,
) -> Array:
    params = joined(trained, base, options)
    stack = params["moe_layers"]
    down = stack["moe"]["experts"]["down"]
    kept = (jnp.arange(down.shape[0]) != layer)[:, None] | (jnp.arange(down.shape[1]) != expert)
    quiet = {**stack["moe"]["experts"], "down": down * kept[..., None, None].astype(down.dtype)}
    params = {**params, "moe_layers": {**stack, "moe": {**stack["moe"], "experts": quiet}}}
    micro = {name: array[0] for name, array in batch.items()}
    return batch_logprobs(params, cfg, micro, options)[0]


def _comparison(found: dict[str, np.ndarray]) -> Comparison:
    return Comparison(
        tokens=found["tokens"],
        positions=found["positions"],
        segments=found["segment_ids"],
        staleness=found["staleness"],
        temperature=found["temperature"],
        sampler=found["sampler_logprobs"],
        trainer=found["logprobs"],
        compared=found["loss_mask"],
        routed=found["routed"],
    )
