"""What a trainer process holds: the policy's shape, the mesh, the sharded state and the compiled step."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from intellect_jax.bridge.huggingface import load_config
from intellect_jax.bridge.load import load_pretrained
from intellect_jax.bridge.policy import Policy
from intellect_jax.bridge.source import find_folder
from intellect_jax.bridge.tokenizer import load_tokenizer
from intellect_jax.models.config import ModelConfig
from intellect_jax.models.transformer import abstract_params, init_params, param_axes
from intellect_jax.monitor import watchdog
from intellect_jax.parallel.axes import refuse_uneven
from intellect_jax.parallel.mesh import make_mesh, sharding, tree_shardings
from intellect_jax.trainer.optimizer import make_optimizer
from intellect_jax.trainer.step import StepOptions, TrainState, make_train_step
from intellect_jax.types import STREAMS, PackedBatch

log = logging.getLogger(__name__)


@dataclass
class Trainer:
    """The compiled step and what it needs. ``step`` consumes the state that it is given."""

    config: ConfigDict
    cfg: ModelConfig
    mesh: Mesh
    optimizer: Any
    programs: dict[tuple[int, ...], Any]  # compiled step by batch shape [M, R, S]
    abstract_state: TrainState

    def init_state(self) -> TrainState:
        """The state before any step: fresh weights, or those of ``model.path``; zero moments."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        if self.config.model.path:
            params = load_pretrained(self.config.model.path, self.mesh).params
        else:
            params = jax.device_put(init_params(self.cfg, self.config.seed), shardings.params)
        return TrainState(params, jax.jit(self.optimizer.init, out_shardings=shardings.opt_state)(params))

    def step(self, state: TrainState, batch: PackedBatch, learning_rate: float) -> tuple[TrainState, dict[str, float]]:
        """One optimizer step; returns when it is done on the device.

        Raises:
            ValueError: a batch of a shape that was not compiled.
        """
        if batch.shape not in self.programs:
            raise ValueError(f"batch {batch.step} has shape {batch.shape}, compiled are {list(self.programs)}")
        arrays = self._to_device(batch)
        rate = jax.device_put(np.float32(learning_rate), NamedSharding(self.mesh, PartitionSpec()))
        with jax.transfer_guard("disallow"):
            state, metrics = self.programs[batch.shape](state, arrays, rate)
        return state, {name: float(value) for name, value in jax.device_get(metrics).items()}

    def _to_device(self, batch: PackedBatch) -> dict[str, jax.Array]:
        wanted = batch_specs(self.config, self.cfg, self.mesh, batch.shape)
        arrays = dict(batch.arrays)
        if "routed_experts" in wanted and "routed_experts" not in arrays:  # supervised batches: no replay
            arrays["routed_experts"] = np.full(wanted["routed_experts"].shape, -1, np.int16)
        return jax.device_put({n: arrays[n] for n in wanted}, {n: spec.sharding for n, spec in wanted.items()})


def model_config(config: ConfigDict, run_dir: Path) -> ModelConfig:
    """The policy's shape: of ``model.path``, or of the ``model`` section with the run's tokenizer."""
    if config.model.path:
        return load_config(config.model.path)
    return ModelConfig.from_config(config.model, len(load_tokenizer(run_dir / "tokenizer")))


def make_policy(config: ConfigDict, cfg: ModelConfig, params: Any) -> Policy:
    """What a run exports: its parameters, with what else ``model.path`` holds."""
    return Policy(params, cfg, find_folder(config.model.path) if config.model.path else None)


def batch_specs(
    config: ConfigDict, cfg: ModelConfig, mesh: Mesh, shape: tuple[int, ...]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings of a batch [M, R, S] on the device."""
    tokens = sharding(mesh, None, "rows", "sequence")
    specs = {name: jax.ShapeDtypeStruct(shape, dtype, sharding=tokens) for name, dtype, _ in STREAMS}
    if config.trainer.router_replay and cfg.num_moe_layers:
        routed = (*shape, cfg.num_moe_layers, cfg.num_experts_per_tok)
        routed_sharding = sharding(mesh, None, "rows", "sequence", None, None)
        specs["routed_experts"] = jax.ShapeDtypeStruct(routed, jnp.int16, sharding=routed_sharding)
    return specs


def create(config: ConfigDict, run_dir: Path) -> Trainer:
    """Builds the mesh and compiles the step for every batch shape of the config."""
    cfg = model_config(config, run_dir)
    mesh = make_mesh(config.parallel)
    refuse_uneven(dict(mesh.shape), config, cfg)
    optimizer = make_optimizer(config.trainer.optimizer)
    state = abstract_state(cfg, mesh, optimizer)
    trainer = Trainer(config, cfg, mesh, optimizer, {}, state)
    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    replicated = NamedSharding(mesh, PartitionSpec())
    step = jax.jit(
        make_train_step(cfg, StepOptions.from_config(config), optimizer),
        donate_argnums=0,
        out_shardings=(state_shardings, replicated),
    )
    rate = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated)
    for seq in config.trainer.seq_buckets:
        for microbatches in config.trainer.microbatch_buckets:
            shape, start = (microbatches, config.trainer.rows, seq), time.monotonic()
            watchdog.progress(f"compiling the step for batches {shape}")
            trainer.programs[shape] = step.lower(state, batch_specs(config, cfg, mesh, shape), rate).compile()
            log.info("compiled the step for batches %s in %.1f s", shape, time.monotonic() - start)
    return trainer


def abstract_state(cfg: ModelConfig, mesh: Mesh, optimizer: Any) -> TrainState:
    """The state as sharded jax.ShapeDtypeStructs; moments lie where their parameters lie."""
    params = jax.tree.map(_with_sharding, abstract_params(cfg), tree_shardings(mesh, param_axes(cfg)))
    replicated = NamedSharding(mesh, PartitionSpec())
    by_path = {path: leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}

    def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        match = next((by_path[path[i:]] for i in range(len(path)) if path[i:] in by_path), None)
        return _with_sharding(leaf, replicated if match is None else match.sharding)

    return TrainState(params, jax.tree_util.tree_map_with_path(place, jax.eval_shape(optimizer.init, params)))


def _with_sharding(leaf: jax.ShapeDtypeStruct, where: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
