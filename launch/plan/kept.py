"""Activations: what loops of a compiled program keep, one slice an iteration, for a later loop to read."""

from __future__ import annotations

from launch.plan.hlo import Computation, Instruction, Module
from launch.plan.loops import trip_count


def kept_bytes(module: Module, gradients: set[tuple[int, ...]]) -> float:
    """Bytes of every array that some loop fills slice by slice, one an iteration.

    ``gradients``: shapes of one device's parameters; what has such a shape is a gradient or a parameter.
    """
    total = 0.0
    for computation in module.computations.values():
        for instruction in computation.instructions.values():
            if instruction.opcode == "while":
                times = trip_count(module, computation, instruction)
                total += _filled(module, module.computations[instruction.called["body"]], times, gradients)
    return total


def _filled(module: Module, body: Computation, times: int | None, gradients: set[tuple[int, ...]]) -> float:
    root = body.instructions[body.root]
    if root.opcode != "tuple":
        return 0.0
    results = [body.instructions[name] for name in dict.fromkeys(root.operands)]
    stacked = [each for each in results if each.shape.dims[:1] == (times,) and each.shape.dims not in gradients]
    return sum(each.bytes for each in stacked if _updates(module, body, each))


def _updates(module: Module, where: Computation, value: Instruction) -> bool:
    """Whether the value is an older one of its shape with one slice replaced."""
    if value.opcode == "dynamic-update-slice":
        return where.operand(value, 1).shape.dims[0] == 1
    if value.opcode in ("bitcast", "copy", "get-tuple-element", "copy-done"):
        source = where.operand(value, 0)
        return source.shape.size == value.shape.size and _updates(module, where, source)
    if value.opcode == "fusion":
        inside = module.computations[value.called["calls"]]
        root = inside.instructions[inside.root]
        return root.opcode != "tuple" and _updates(module, inside, root)
    return False
