"""When each role worked, and what went wrong, on the axis of run time."""

from __future__ import annotations

import signal
from typing import Any

from intellect_jax.monitor.metrics import Row
from intellect_jax.monitor.report.clock import SILENT, Clock
from intellect_jax.monitor.summary import LAUNCHER, surviving
from intellect_jax.monitor.text import duration

EVENTS = 300  # shown, at most
SPANS = 500  # of a lane, about

Span = tuple[float, float, str]  # begin and end in seconds of run time; what the role did
Event = dict[str, Any]  # time (s of run time), role, kind, text


def timeline(rows: list[Row], clock: Clock) -> dict[str, Any]:
    """``end`` (s), ``lanes`` (role -> spans) and ``events``, oldest first; lesser events give way to deaths."""
    end = float(clock([rows[-1]["time"]])[0]) if rows else 0.0
    events = [*_launcher_events(rows), *_trainer_events(rows), *_orchestrator_events(rows), *_compilations(rows)]
    important = sorted(events, key=lambda event: event["kind"] != "death")[:EVENTS]
    for event, seconds in zip(important, clock([event["time"] for event in important]), strict=True):
        event["time"] = round(float(seconds), 2)
    return {
        "end": round(end, 2),
        "lanes": _lanes(rows, clock, end),
        "events": sorted(important, key=lambda event: event["time"]),
        "events_left_out": len(events) - len(important),
    }


def _lanes(rows: list[Row], clock: Clock, end: float) -> dict[str, list[Span]]:
    samplers = sorted({row["role"] for row in rows if "tokens/generated" in row})
    workers = sorted({name.removeprefix("deaths/") for row in rows for name in row if name.startswith("deaths/env")})
    merge = max(SILENT, end / SPANS)
    lanes = {"trainer": _trainer_spans(rows, clock, merge), "orchestrator": _orchestrator_spans(rows, clock, merge)}
    for role in samplers:
        times = clock([row["time"] for row in rows if row["role"] == role])
        lanes[role] = merged([(float(t), float(t), "serving") for t in times], merge)
    return lanes | {role: [] for role in workers}


def _trainer_spans(rows: list[Row], clock: Clock, merge: float) -> list[Span]:
    """Supervised and RL steps; ``lost`` are those that a restart took back."""
    spans: list[Span] = []
    for role, name in (("sft", "supervised"), ("trainer", "RL")):
        kept = {id(row) for row in surviving(rows, role)}
        steps = [row for row in rows if row["role"] == role and row["step"] is not None]
        took = [sum(row.get(f"time/{part}_s", 0.0) for part in ("step", "publish")) for row in steps]
        begins = clock([row["time"] - seconds for row, seconds in zip(steps, took, strict=True)])
        ends = clock([row["time"] for row in steps])
        kinds = [name if id(row) in kept else "lost" for row in steps]
        spans += zip(begins.tolist(), ends.tolist(), kinds, strict=True)
    return merged(sorted(spans), merge)


def _orchestrator_spans(rows: list[Row], clock: Clock, merge: float) -> list[Span]:
    done = [row for row in rows if row["role"] == "orchestrator"]
    times = clock([row["time"] for row in done])
    began = clock([row["time"] - row.get("rollouts/seconds", 0.0) for row in done])
    return merged(sorted((float(a), float(b), "generating") for a, b in zip(began, times, strict=True)), 4 * merge)


def merged(spans: list[Span], gap: float) -> list[Span]:
    """Sorted spans of the same kind that are at most ``gap`` apart become one."""
    result: list[Span] = []
    for begin, end, kind in spans:
        if result and result[-1][2] == kind and begin - result[-1][1] <= gap:
            result[-1] = (result[-1][0], max(end, result[-1][1]), kind)
        else:
            result.append((begin, end, kind))
    return [(round(begin, 2), round(end, 2), kind) for begin, end, kind in result]


def _event(row: Row, role: str, kind: str, text: str) -> Event:
    return {"time": row["time"], "role": role, "kind": kind, "text": text}


def _launcher_events(rows: list[Row]) -> list[Event]:
    events: list[Event] = []
    for row in rows:
        if row["role"] != LAUNCHER:
            continue
        if "run/started" in row:
            events.append(_event(row, LAUNCHER, "start", "run resumed" if events else "run started"))
        if "run/ended" in row:
            events.append(_event(row, LAUNCHER, "end", "run ended"))
        for name in row:
            if name.startswith("deaths/"):
                role = name.removeprefix("deaths/")
                events.append(_event(row, role, "death", f"{role} died: {_how(row)}"))
    return events


def _how(row: Row) -> str:
    code = row.get("process/exit_code")
    if code is None:
        return "no exit code noted"
    try:
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    except ValueError:
        how = f"killed by signal {-code}"
    return f"{how} after {duration(row['process/lived_s'])}" if "process/lived_s" in row else how


def _trainer_events(rows: list[Row]) -> list[Event]:
    """Where a trainer took up an earlier step."""
    events = []
    before: Row | None = None
    for row in rows:
        if row["role"] == "trainer" and row["step"] is not None:
            if before and (
                row["step"] <= before["step"] or row.get("version/lineage") != before.get("version/lineage")
            ):
                lost = max(before["step"] - row["step"] + 1, 0)
                text = f"trainer goes on with step {row['step']}" + (f"; {lost} steps taken again" if lost else "")
                events.append(_event(row, "trainer", "restore", text))
            before = row
    return events


def _orchestrator_events(rows: list[Row]) -> list[Event]:
    events = []
    for row in rows:
        if row["role"] != "orchestrator":
            continue
        if "eval/reward" in row:
            text = f"evaluation of version {row.get('eval/version', row['step'])}: reward {row['eval/reward']:.3f}"
            events.append(_event(row, "orchestrator", "eval", text))
        if row.get("rollouts/dropped_error"):
            count = row["rollouts/dropped_error"]
            text = f"{count} rollout{'s' if count != 1 else ''} failed before batch {row['step']}"
            events.append(_event(row, "orchestrator", "error", text))
    return events


def _compilations(rows: list[Row]) -> list[Event]:
    """What compiled although it had warmed up; a count that falls is that of a new process."""
    events, before = [], dict[str, float]()
    for row in rows:
        if "compile/after_warmup" in row:
            role, count = row["role"], row["compile/after_warmup"]
            if count > before.get(role, 0):
                events.append(_event(row, role, "compile", f"{role} compiled again after its warm-up"))
            before[role] = count
    return events
