"""A plan as a person reads it."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from launch.plan.fleet import ENOUGH
from launch.plan.targets import USABLE, Target


def size_text(size: float) -> str:
    """Three or four digits and a decimal unit."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.4g} {unit}"
    return f"{size:.0f} B"


def heading(target: Target, devices: int, compiler: str, hint: str) -> str:
    """What is asked, and whose compiler answers."""
    by = f"the compiler of {compiler.upper()} itself"
    if compiler != target.compiler:
        by = f"the CPU's compiler and arithmetic, for {target.compiler.upper()}'s own is not here ({hint})"
    return f"{devices} x {target.name}, by {by}"


def table(found: dict[str, Any], target: Target) -> str:
    """Batch, memory, FLOPs, collectives, time, verdict."""
    batch = found["batch"]
    mesh = " ".join(f"{axis}={size}" for axis, size in found["mesh"].items())
    lines = [
        "",
        f"mesh         {mesh}; remat {found['remat']}",
        f"step         {batch['microbatches']} microbatches of {batch['rows']} rows of {batch['length']} tokens: "
        f"{batch['tokens']:,}, every row full and one sample, a loss on {batch['members']:.0%} of the tokens",
        "",
        *_memory(found, target),
        "",
        *_flops(found),
        "",
        *_collectives(found),
        "",
        *_time(found),
        "",
        verdict(found, target),
    ]
    return "\n".join(lines)


def verdict(found: dict[str, Any], target: Target) -> str:
    total = sum(found["memory"].values())
    if found["refused"]:
        return f"DOES NOT FIT: the compiler says: {found['refused']}"
    fits = "FITS" if found["fits"] else "DOES NOT FIT"
    return f"{fits}: {size_text(total)} of {size_text(USABLE * target.memory)} a device ({USABLE:.0%} of its memory)"


def _memory(found: dict[str, Any], target: Target) -> list[str]:
    rows = [f"  {kind:<14}{size_text(size):>10}" for kind, size in found["memory"].items()]
    total = sum(found["memory"].values())
    host = [f"  {'on its host':<14}{size_text(found['host_memory']):>10}"] if found["host_memory"] else []
    title = f"memory of one device, by {found['memory_by']}"
    return [title, *rows, f"  {'total':<14}{size_text(total):>10} of {size_text(target.memory)}", *host]


def _flops(found: dict[str, Any]) -> list[str]:
    model, executed = sum(found["model_flops"].values()), found["executed_flops"]
    lines = [f"model FLOPs  {model:.4g} a step (causal half, nothing twice): " + _shares(found["model_flops"])]
    if executed:
        traced = found["traced_flops"]  # which does not see into hand-written kernels
        once = f" (without that {traced:.4g})" if traced >= model else ""
        lines.append(
            f"executed     {executed:.4g}, {executed / model:.2f}x: recomputation, masked halves, padding, and what "
            f"several devices repeat{once}"
        )
    if found["unknown_loops"]:
        lines.append(f"  {found['unknown_loops']} loops are as long as data say: products count as traced")
    if found["unknown_kernels"]:
        lines.append("  without the FLOPs of " + ", ".join(sorted(found["unknown_kernels"])))
    return lines


def _shares(parts: dict[str, float]) -> str:
    total = sum(parts.values())
    return ", ".join(f"{part.replace('_', ' ')} {value / total:.0%}" for part, value in parts.items() if value)


def _collectives(found: dict[str, Any]) -> list[str]:
    totals: dict[tuple[str, str], list[float]] = {}
    for each in found["collectives"]:
        entry = totals.setdefault(("x".join(each["axes"]) or "none", each["kind"]), [0.0, 0.0])
        entry[0] += each["bytes"] * each["executions"]
        entry[1] += each["executions"]
    rows = [
        f"  {axes:<24}{kind:<20}{size_text(size):>10} in {int(count):>8,}"
        for (axes, kind), (size, count) in sorted(totals.items(), key=lambda item: -item[1][0])
        if size >= 1e-6 * max(total for total, _ in totals.values())
    ]
    return ["collectives of one device and step, by mesh axes", *(rows or ["  none"])]


def _time(found: dict[str, Any]) -> list[str]:
    line = found["roofline"]
    parts = ", ".join(f"{part} {seconds:.3g} s" for part, seconds in line["parts"].items())
    return [
        f"at best      {line['overlapped']:.3g} s a step if all overlaps (MFU {line['mfu_overlapped']:.1%}), "
        f"{line['serial']:.3g} s if links wait (MFU {line['mfu_serial']:.1%})",
        f"bound by     {line['bound']}  ({parts})",
    ]


def ranking(tried: list[dict[str, Any]]) -> str:
    """The compiled candidates of a search, best first."""
    rows = [
        f"  {index}. {plan['name']}: {plan['roofline']['serial']:.3g} s, MFU {plan['roofline']['mfu_serial']:.1%}, "
        f"{size_text(sum(plan['memory'].values()))}, {'fits' if plan['fits'] else 'does not fit'}"
        for index, plan in enumerate(tried, 1)
    ]
    return "\n".join(["", "ranked by the compiled program:", *rows])


def fleet_table(rows: list[dict[str, Any]], config: ConfigDict, devices: int) -> str:
    """How many sampler GPUs feed the trainer, and what the others would do."""
    if not rows:
        return ""
    plan = config.plan
    head = (
        f"\nfleet        {plan.sampler_tokens_per_second:g} tokens/s a sampler GPU, {plan.request_tokens_per_second:g} "
        f"a request, at most {config.orchestrator.max_off_policy_steps} versions stale"
    )
    lines = [
        f"  {row['samplers']:>6} samplers: step {row['step_seconds']:.3g} s, trainer idle {row['trainer_idle']:.0%}, "
        f"samplers idle {row['sampler_idle']:.0%}, staleness {row['staleness_mean']:.2f} (at most "
        f"{row['staleness_max']}), dropped {row['dropped']:.1%}"
        for row in rows
    ]
    fed = next((row for row in rows if row["trainer_idle"] <= ENOUGH), None)
    if fed is None:
        best = "no fleet of these sizes feeds the trainer: raise max_inflight_groups or max_off_policy_steps"
    else:
        best = f"trainer : samplers = {devices} : {fed['samplers']} keeps the trainer busy"
    return "\n".join([head, *lines, f"  {best}"])
