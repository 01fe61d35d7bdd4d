"""How often a loop of a compiled program runs."""

from __future__ import annotations

import re

from launch.plan.hlo import Computation, Instruction, Module

_VIEWS = ("copy", "bitcast", "convert", "reshape", "copy-done", "copy-start")


def trip_count(module: Module, where: Computation, loop: Instruction) -> int | None:
    """As the compiler noted, or as the loop's condition compares a counter from 0 with a number; None: not known.

    The number is a constant of the condition, or one that the loop is handed when it starts.
    """
    if match := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(match[1])
    condition = module.computations[loop.called["condition"]]
    root = condition.instructions[condition.root]
    compared = _arguments(module, condition, root)
    limits = {limit for each in compared if (limit := _limit(where, loop, each, condition)) is not None}
    return limits.pop() if len(limits) == 1 else None


def _arguments(module: Module, condition: Computation, root: Instruction) -> list[Instruction]:
    """What the condition compares, seen from outside where a fusion does it."""
    if root.opcode != "fusion":
        return [condition.instructions[name] for name in root.operands]
    outside = [condition.instructions[name] for name in root.operands]
    inside = module.computations[root.called["calls"]].instructions.values()
    return outside + [each for each in inside if each.opcode == "constant"]


def _limit(where: Computation, loop: Instruction, value: Instruction, condition: Computation) -> int | None:
    while value.opcode in _VIEWS:
        value = condition.operand(value, 0)
    if value.opcode == "constant":
        return _number(value)
    started = where.operand(loop, 0)
    match = re.search(r"index=(\d+)", value.attributes)
    if value.opcode != "get-tuple-element" or match is None or started.opcode != "tuple":
        return None
    handed = where.operand(started, int(match[1]))
    while handed.opcode in _VIEWS:
        handed = where.operand(handed, 0)
    return _number(handed) or None  # 0 is where a counter starts


def _number(value: Instruction) -> int | None:
    return int(value.arguments) if value.opcode == "constant" and value.arguments.isdigit() else None
