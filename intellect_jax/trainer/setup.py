"""What a trainer process holds: the policy's shape, the mesh, the sharded state and the compiled step."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from intellect_jax.bridge.adapter import save_adapter
from intellect_jax.bridge.load import load_pretrained
from intellect_jax.bridge.policy import Policy
from intellect_jax.bridge.save import save_pretrained
from intellect_jax.bridge.shape import model_config
from intellect_jax.bridge.source import Source, find_folder
from intellect_jax.models.config import ModelConfig
from intellect_jax.models.lora import Adapter, abstract_adapter, adapter_axes, init_adapter
from intellect_jax.models.lora_shape import Lora, refuse_absent
from intellect_jax.models.transformer import Params, abstract_params, init_params, param_axes
from intellect_jax.monitor import watchdog
from intellect_jax.parallel.axes import refuse_uneven
from intellect_jax.parallel.memory import refuse_missing_memory
from intellect_jax.parallel.mesh import make_mesh, sharding, tree_shardings
from intellect_jax.parallel.ops import make_ops
from intellect_jax.parallel.parts import Share, own_share, place, replicate
from intellect_jax.parallel.processes import summed
from intellect_jax.trainer.optimizer import Optimizer, is_moment, make_optimizer
from intellect_jax.trainer.report import count_tokens
from intellect_jax.trainer.step import StepOptions, TrainState, make_train_step
from intellect_jax.types import STREAMS, PackedBatch

log = logging.getLogger(__name__)


@dataclass
class Trainer:
    """The compiled step and what it needs. ``step`` consumes the state that it is given."""

    config: ConfigDict
    cfg: ModelConfig
    mesh: Mesh
    optimizer: Optimizer
    programs: dict[tuple[int, ...], Any]  # compiled step by batch shape [M, R, S]
    abstract_state: TrainState
    share: Share  # of every batch: what this process loads
    base: Params | None = None  # of a LoRA run: the frozen parameters

    def init_state(self) -> TrainState:
        """The state before any step: fresh weights, those of ``model.path``, or fresh adapters; zero moments."""
        lora = Lora.from_config(self.config.lora)
        if lora:
            shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state.params)
            init = partial(init_adapter, self.cfg, lora, self.config.seed)
            params = jax.jit(init, out_shardings=shardings)()
        else:
            params = initial_params(self.config, self.cfg, self.mesh)
        return self.fresh_state(params)

    def fresh_state(self, params: Params) -> TrainState:
        """Of these parameters, with moments of zero."""
        where = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state.opt_state)
        return TrainState(params, jax.jit(self.optimizer.init, out_shardings=where)(params))

    def step(self, state: TrainState, batch: PackedBatch, learning_rate: float) -> tuple[TrainState, dict[str, float]]:
        """One optimizer step; returns when it is done on the device. ``batch``: this process's part of it.

        Raises:
            ValueError: a batch of a shape that was not compiled.
        """
        microbatches, rows, seq = batch.shape
        shape = (microbatches, rows * self.share.parts, seq)
        if shape not in self.programs:
            raise ValueError(f"batch {batch.step} has shape {shape}, compiled are {list(self.programs)}")
        arrays = self.to_device(batch, shape)
        rate = replicate(np.float32(learning_rate), NamedSharding(self.mesh, PartitionSpec()))
        with jax.transfer_guard("disallow"):
            state, metrics = self.programs[shape](state, arrays, rate, self.base)
        return state, {name: float(value) for name, value in jax.device_get(metrics).items()}

    def policy(self, state: TrainState) -> Policy:
        """What a state stands for, to publish and to export."""
        return make_policy(self.config, self.cfg, state.params, self.base)

    def counts(self, batch: PackedBatch) -> np.ndarray:
        """:func:`report.count_tokens` of the whole batch, of which every process has a part."""
        return summed(count_tokens(batch), self.share.counts)

    def to_device(self, batch: PackedBatch, shape: tuple[int, ...]) -> dict[str, jax.Array]:
        """The whole batch [M, R, S] of which ``batch`` has this process's rows."""
        wanted = batch_specs(self.config, self.cfg, self.mesh, shape)
        arrays = dict(batch.arrays)
        if "routed_experts" in wanted and "routed_experts" not in arrays:  # supervised batches: no replay
            arrays["routed_experts"] = np.full((*batch.shape, *wanted["routed_experts"].shape[3:]), -1, np.int16)
        return {name: place(arrays[name], spec.sharding, self.share) for name, spec in wanted.items()}


def initial_params(config: ConfigDict, cfg: ModelConfig, mesh: Mesh | None, frozen: bool = False) -> Params:
    """The parameters before any step, sharded over ``mesh`` (None: on one device): fresh ones, or ``model.path``'s.

    They are float32; ``frozen`` ones are kept as ``model.path`` stores them if that is bfloat16: nothing is added up in
    them, so they lose no bit and take half the memory.
    """
    if config.model.path:
        dtype = Source(find_folder(config.model.path)).dtype if frozen else "float32"
        return load_pretrained(config.model.path, mesh, dtype).params
    # LLVM's optimisation of a program that runs once takes five times as long as the program without it.
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    params = jax.jit(partial(init_params, cfg, config.seed), compiler_options=quick)()
    return jax.device_put(params, tree_shardings(mesh, param_axes(cfg))) if mesh else params


def make_policy(config: ConfigDict, cfg: ModelConfig, trained: Params, base: Params | None = None) -> Policy:
    """What a run exports: what it trained, with LoRA on top of ``base``, and what else ``model.path`` holds."""
    source = find_folder(config.model.path) if config.model.path else None
    lora = Lora.from_config(config.lora)
    if lora is None:
        return Policy(trained, cfg, source)
    return Policy(base or {}, cfg, source, Adapter(trained, lora))


def abstract_trained(cfg: ModelConfig, lora: Lora | None, mesh: Mesh) -> Params:
    """What trains, as sharded jax.ShapeDtypeStruct: the whole policy, or its adapters."""
    axes = adapter_axes(cfg, lora) if lora else param_axes(cfg)
    shapes = abstract_adapter(cfg, lora) if lora else abstract_params(cfg)
    return jax.tree.map(_with_sharding, shapes, tree_shardings(mesh, axes))


def export_policy(config: ConfigDict, policy: Policy, out_dir: Path, tokenizer: Path) -> None:
    """Writes what ``export`` asks for: a whole model, or of a LoRA run its adapter alone."""
    if policy.adapter and config.export.lora == "adapter":
        save_adapter(policy, out_dir, tokenizer=tokenizer, base=config.model.path)
    else:
        save_pretrained(policy, out_dir, dtype=config.export.dtype, tokenizer=tokenizer)


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
    refuse_missing_memory(config, jax.local_devices()[0])
    lora = Lora.from_config(config.lora)
    refuse_absent(lora, cfg)
    optimizer, state = optimizer_and_state(config, cfg, mesh)
    base = initial_params(config, cfg, mesh, frozen=True) if lora else None
    shape = (1, config.trainer.rows, max(config.trainer.seq_buckets))
    share = own_share(batch_specs(config, cfg, mesh, shape)["tokens"].sharding, shape, jax.process_index())
    trainer = Trainer(config, cfg, mesh, optimizer, {}, state, share, base)
    step = jit_step(config, cfg, mesh, optimizer, state)
    rate = jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    for seq in config.trainer.seq_buckets:
        for microbatches in config.trainer.microbatch_buckets:
            shape, start = (microbatches, config.trainer.rows, seq), time.monotonic()
            watchdog.progress(f"compiling the step for batches {shape}")
            trainer.programs[shape] = step.lower(state, batch_specs(config, cfg, mesh, shape), rate, base).compile()
            log.info("compiled the step for batches %s in %.1f s", shape, time.monotonic() - start)
    return trainer


def optimizer_and_state(config: ConfigDict, cfg: ModelConfig, mesh: Mesh) -> tuple[Optimizer, TrainState]:
    """The optimizer, and what it updates: abstract, see :func:`abstract_state`."""
    lora = Lora.from_config(config.lora)
    optimizer = make_optimizer(config.trainer.optimizer, abstract_trained(cfg, lora, mesh))
    return optimizer, abstract_state(cfg, mesh, optimizer, lora)


def jit_step(config: ConfigDict, cfg: ModelConfig, mesh: Mesh, optimizer: Optimizer, state: TrainState) -> Any:
    """The step of ``make_train_step`` for one mesh, its state donated; ``state`` may be abstract, as may the mesh's
    devices: ``launch plan`` compiles the same step for hardware that is not there."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    options = StepOptions.from_config(config, make_ops(config, mesh))
    step = make_train_step(cfg, options, optimizer)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, NamedSharding(mesh, PartitionSpec())))


def abstract_state(cfg: ModelConfig, mesh: Mesh, optimizer: Optimizer, lora: Lora | None = None) -> TrainState:
    """The state as sharded jax.ShapeDtypeStructs; moments lie where their parameters lie, or in their hosts' memory."""
    params = abstract_trained(cfg, lora, mesh)
    replicated = NamedSharding(mesh, PartitionSpec())
    by_path = {path: leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}

    def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        match = next((by_path[path[i:]] for i in range(len(path)) if path[i:] in by_path), None)
        where = replicated if match is None else match.sharding
        if optimizer.memory_kind and is_moment(leaf):
            where = where.with_memory_kind(optimizer.memory_kind)
        return _with_sharding(leaf, where)

    return TrainState(params, jax.tree_util.tree_map_with_path(place, jax.eval_shape(optimizer.init, params)))


def _with_sharding(leaf: jax.ShapeDtypeStruct, where: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
