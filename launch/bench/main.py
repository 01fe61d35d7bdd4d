"""``python -m launch bench``: the real trainer step on made-up batches, as JSON lines and then for people."""

from __future__ import annotations

import json
import platform
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from intellect_jax.models.flops import Work, step_flops
from intellect_jax.monitor.compilations import CompilationCounter
from intellect_jax.trainer import setup
from intellect_jax.trainer.setup import Trainer
from intellect_jax.types import PackedBatch
from launch import preparation
from launch.bench.batches import made_up_batch
from launch.bench.measure import matmul_rate, peak_bytes
from launch.bench.rates import datasheet

BATCHES = 2  # different ones, in turn: a step's time must not depend on where segments lie
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


@dataclass(frozen=True)
class Step:
    seconds: float
    tokens: int
    flops: int  # model FLOPs


def main(config: ConfigDict) -> int:
    """Compiles the step for one batch shape, warms up, measures; returns 0."""
    shape = (config.trainer.microbatch_buckets[0], config.trainer.rows, config.trainer.seq_buckets[0])
    compilations = CompilationCounter()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        preparation.prepare_tokenizer(config, Path(folder))
        start = time.monotonic()
        trainer = setup.create(config, Path(folder))
        say({"event": "compiled", "batch": shape, "seconds": round(time.monotonic() - start, 2)})
    steps = measure(trainer, shape, compilations)
    found = summary(trainer, shape, steps, compilations)
    say({"event": "summary", **found})
    if jax.process_index() == 0:
        print("\n".join(readable(found)))
    return 0


def measure(trainer: Trainer, shape: tuple[int, int, int], compilations: CompilationCounter) -> list[Step]:
    """Warm-up steps, then ``bench.steps`` measured ones, each said as it ends."""
    config = trainer.config
    rng = np.random.default_rng(config.seed)
    replay, segment = config.trainer.router_replay, config.bench.segment or max(2, shape[2] // 4)
    batches = [made_up_batch(rng, shape, trainer.cfg, segment=segment, replay=replay) for _ in range(BATCHES)]
    state = trainer.init_state()
    taken = []
    for number in range(config.bench.warmup_steps + config.bench.steps):
        if number == config.bench.warmup_steps:
            compilations.warm()
        batch = batches[number % BATCHES]
        start = time.perf_counter()
        state, sums = trainer.step(state, batch, config.trainer.optimizer.learning_rate)
        step = done(trainer, batch, time.perf_counter() - start)
        warm = number < config.bench.warmup_steps
        say({"event": "warm-up" if warm else "step", **vars(step), "grad_norm": sums["grad_norm"]})
        taken += [] if warm else [step]
    return taken


def done(trainer: Trainer, batch: PackedBatch, seconds: float) -> Step:
    work = Work.of_batch(batch.arrays)
    return Step(seconds, work.tokens, step_flops(trainer.cfg, work, frozen=trainer.base is not None))


def summary(
    trainer: Trainer, shape: tuple[int, int, int], steps: list[Step], compilations: CompilationCounter
) -> dict[str, Any]:
    """Figures of all measured steps together. Utilisation is of all devices of the mesh."""
    recompiled, peak = compilations.after_warmup, peak_bytes()  # before measuring compiles and allocates, too
    seconds, dtype = [step.seconds for step in steps], trainer.config.model.compute_dtype
    device = jax.devices()[0]
    rate = sum(step.flops for step in steps) / sum(seconds)
    measured, stated = matmul_rate(dtype), datasheet(device.device_kind, dtype)
    devices = trainer.mesh.size
    return {
        "tokens_per_s": sum(step.tokens for step in steps) / sum(seconds),
        "step_s": {"median": median(seconds), "min": min(seconds), "max": max(seconds)},
        "steps": len(steps),
        "batch": shape,
        "model_flops_per_s": rate,
        "mfu_measured": rate / (measured * devices),
        "mfu_datasheet": stated and rate / (stated * devices),
        "measured_matmul_flops_per_s": measured,
        "datasheet_flops_per_s": stated,
        "dtype": dtype,
        "peak_bytes": peak,
        "recompilations": recompiled,
        "device": device.device_kind,
        "devices": devices,
        "mesh": dict(trainer.mesh.shape),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }


def readable(found: dict[str, Any]) -> list[str]:
    """The summary for people."""
    seconds, stated = found["step_s"], found["mfu_datasheet"]
    microbatches, rows, length = found["batch"]
    share = f"MFU {100 * found['mfu_measured']:.1f}% of the {found['dtype']} matmul rate measured here"
    return [
        f"{found['tokens_per_s']:,.0f} tokens/s; a step of {microbatches} x {rows} rows of {length} tokens takes "
        f"{seconds['median']:.3f} s ({seconds['min']:.3f} to {seconds['max']:.3f} in {found['steps']} steps)",
        f"{found['model_flops_per_s'] / 1e12:.3f} TFLOP/s of model FLOPs: {share} "
        f"({found['measured_matmul_flops_per_s'] / 1e12:.3f} TFLOP/s a device)"
        + (f", {100 * stated:.1f}% of the datasheet's" if stated else ""),
        f"peak memory {found['peak_bytes'] / 2**30:.2f} GiB, recompilations {found['recompilations']}, "
        f"{found['devices']} x {found['device']}, jax {found['versions']['jax']}",
    ]


def say(line: dict[str, Any]) -> None:
    """One JSON line, of the first process alone."""
    if jax.process_index() == 0:
        print(json.dumps(line), flush=True)
