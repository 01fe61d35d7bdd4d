"""``python -m launch plan``: compile the step for hardware that is not there, and say what a run would cost on it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from intellect_jax.config import to_plain
from intellect_jax.files import write_json
from intellect_jax.models.config import ModelConfig
from intellect_jax.models.lora_shape import Lora, refuse_absent
from intellect_jax.parallel.axes import axis_sizes, refuse_uneven
from launch import preflight
from launch.plan import estimate, fleet, memory, report
from launch.plan.compile import HINTS, CompilationFailed, Compiled, Request, compile_step, compiler_of
from launch.plan.model_flops import Batch, step_flops
from launch.plan.roofline import roofline
from launch.plan.search import candidates
from launch.plan.targets import TARGETS, Target, topology

COMPILED = 4  # candidates of a search that are compiled


def plan(config: ConfigDict, target_name: str, devices: int, out: Path, *, search: bool, fleet_devices: int) -> None:
    """Prints the plan and writes it to ``out``; raises UserError, and CompilationFailed when a compiler fails."""
    target, cfg, started = TARGETS[target_name], refuse(config, target_name, devices, search), time.monotonic()
    compiler = compiler_of(target)
    print(report.heading(target, devices, compiler, HINTS.get(target.compiler, "")), flush=True)
    found: dict[str, Any]
    if search:
        tried = search_plans(config, cfg, target, devices, compiler)
        if not tried:
            raise CompilationFailed("no candidate of the search could be compiled")
        print(report.ranking(tried))
        found = {**tried[0], "search": tried}
    else:
        found = one_plan(config, cfg, target, devices, compiler)
    print(report.table(found, target))
    found["fleet"] = [each._asdict() for each in fleet_plan(config, found["roofline"]["serial"], fleet_devices)]
    print(report.fleet_table(found["fleet"], config, devices))
    found |= {"target": target_name, "devices": devices, "seconds": round(time.monotonic() - started, 1)}
    write_json(out, found)
    print(f"\nplanned in {found['seconds']:.0f} s; everything is in {out}")


def refuse(config: ConfigDict, target_name: str, devices: int, search: bool) -> ModelConfig:
    """Raises UserError for whatever no compiler needs to be asked about; returns the policy's shape."""
    _, cfg = preflight.refuse_model(config)
    refuse_absent(Lora.from_config(config.lora), cfg)
    if TARGETS[target_name].compiler != "cpu":
        topology(TARGETS[target_name], devices)
    if not search:
        refuse_uneven(axis_sizes(config.parallel, devices), config, cfg)
    return cfg


def batch_of(config: ConfigDict) -> Batch:
    """The largest batch that the configuration compiles."""
    trainer = config.trainer
    return Batch(max(trainer.microbatch_buckets), trainer.rows, max(trainer.seq_buckets), config.plan.member_share)


def one_plan(config: ConfigDict, cfg: ModelConfig, target: Target, devices: int, compiler: str) -> dict[str, Any]:
    """Compiles and judges the configuration as it is."""
    compiled = compile_step(Request(to_plain(config), cfg.vocab_size, target.name, devices, compiler))
    return judge(config, cfg, target, devices, compiled)


def judge(config: ConfigDict, cfg: ModelConfig, target: Target, devices: int, compiled: Compiled) -> dict[str, Any]:
    """What a compiled step means on a target: everything that the report shows, as plain values."""
    batch, lora = batch_of(config), Lora.from_config(config.lora)
    parts = step_flops(cfg, batch, frozen=lora is not None)
    kinds = memory.by_kind(compiled)
    shape = estimate.Shape.of(config, cfg, batch, compiled.mesh, config.trainer.remat)
    own = compiled.compiler == target.compiler and not compiled.refused
    if not own:  # temporaries of another compiler say nothing about this target
        kinds |= {kind: estimate.memory(shape)[kind] for kind in ("activations", "temporaries")}
    flops = executed_flops(config, compiled, devices)
    line = roofline(target, flops, compiled.traffic, compiled.collectives, sum(parts.values()), devices)
    if compiled.refused:  # there is no program to read
        line = estimate.bound(shape, target)
    return {
        "compiler": compiled.compiler,
        "versions": compiled.versions,
        "mesh": compiled.mesh,
        "batch": {**vars(batch), "tokens": batch.tokens},
        "remat": config.trainer.remat,
        "memory": kinds,
        "memory_by": "compiler" if own else "arithmetic for activations and temporaries, sharding for the rest",
        "host_memory": sum(size for kind, size in compiled.state.items() if kind.endswith("_host")),
        "fits": not compiled.refused and memory.fits(target, kinds),
        "refused": compiled.refused,
        "model_flops": parts,
        "executed_flops": sum(flops.values()) * devices,
        "traced_flops": compiled.traced_flops,
        "unknown_loops": compiled.unknown_loops,
        "unknown_kernels": compiled.kernels,
        "memory_traffic": compiled.traffic,
        "collectives": [vars(each) for each in compiled.collectives],
        "roofline": {
            "parts": line.parts,
            "overlapped": line.overlapped,
            "serial": line.serial,
            "mfu_overlapped": line.mfu(line.overlapped),
            "mfu_serial": line.mfu(line.serial),
            "bound": line.bound,
        },
        "compile": {key: getattr(compiled, key) for key in ("trace_seconds", "compile_seconds", "peak_rss")},
    }


def executed_flops(config: ConfigDict, compiled: Compiled, devices: int) -> dict[str, float]:
    """Of one device, by dtype: as compiled, unless loops whose length depends on data (a CPU's over the rows of
    experts) hide some; then as traced, where such products have the shapes of all rows."""
    traced = compiled.traced_flops / devices
    if compiled.unknown_loops == 0 or sum(compiled.flops.values()) >= traced:
        return compiled.flops
    return {"bf16" if config.model.compute_dtype == "bfloat16" else "f32": traced}


def search_plans(
    config: ConfigDict, cfg: ModelConfig, target: Target, devices: int, compiler: str
) -> list[dict[str, Any]]:
    """The best candidates by arithmetic, compiled; those that fit first, the fastest first."""
    ranked = candidates(config, cfg, target, devices, batch_of(config))
    chosen = ranked[:COMPILED]
    print(f"{len(ranked)} candidates by arithmetic, compiling the best {len(chosen)}:", flush=True)
    tried = []
    for each in chosen:
        print(f"  {each.name}", flush=True)
        try:
            found = one_plan(each.apply(config), cfg, target, devices, compiler)
        except CompilationFailed as error:
            print(f"    {str(error).splitlines()[-1]}", flush=True)
            continue
        tried.append({"name": each.name, "estimate": each.bound.serial, **found})
    return sorted(tried, key=lambda plan: (not plan["fits"], plan["roofline"]["serial"]))


def fleet_plan(config: ConfigDict, step_seconds: float, fleet_devices: int) -> list[fleet.Fleet]:
    """The asynchronous loop with more and fewer samplers, or with ``fleet_devices`` of them."""
    if config.trainer.max_steps == 0 or step_seconds <= 0:
        return []
    loop = fleet.loop_of(config, step_seconds, max(fleet_devices, 1))
    rows = fleet.balance(loop)
    if fleet_devices:
        rows = sorted({*rows, fleet.simulate(replace(loop, samplers=fleet_devices))}, key=lambda row: row.samplers)
    return rows
