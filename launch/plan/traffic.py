"""Bytes that one instruction of a compiled program reads from and writes to device memory."""

from __future__ import annotations

from launch.plan.hlo import Computation, Instruction, Module

_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "iota"),
    *("after-all", "partition-id", "replica-id", "opt-barrier", "optimization-barrier", "async-update", "domain"),
}
_SLICES = ("dynamic-slice", "slice", "gather")
_VIEWS = ("bitcast", "reshape", "copy", "convert", "transpose")


def traffic(module: Module, where: Computation, instruction: Instruction) -> float:
    """Operands plus results, a slice of a larger array (of stacked layers, say) counting only as the slice."""
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith(("-done", "-start")):
        return 0.0
    if opcode in _SLICES:
        return 2.0 * instruction.bytes
    if opcode in ("dynamic-update-slice", "scatter"):
        return 2.0 * where.operand(instruction, -1 if opcode == "scatter" else 1).bytes
    if opcode == "fusion":
        return _fusion(module.computations[instruction.called["calls"]], where, instruction)
    return instruction.bytes + sum(where.instructions[name].bytes for name in instruction.operands)


def _fusion(inside: Computation, where: Computation, fusion: Instruction) -> float:
    users: dict[str, list[Instruction]] = {}
    for each in inside.instructions.values():
        for name in each.operands:
            users.setdefault(name, []).append(each)
    parameters = {int(p.arguments): p for p in inside.instructions.values() if p.opcode == "parameter"}
    read = sum(
        _read(inside, users, parameters[index], where.instructions[name].bytes)
        for index, name in enumerate(fusion.operands)
    )
    return read + _written(inside, inside.instructions[inside.root])


def _read(inside: Computation, users: dict[str, list[Instruction]], value: Instruction, whole: float) -> float:
    """What of one operand a fusion reads: the slices, if slices are all that it takes, else the whole."""
    total = 0.0
    for user in users.get(value.name, []):
        if user.opcode in _SLICES and user.operands[0] == value.name:
            total += user.bytes
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == value.name:
            continue  # updated in place
        elif user.opcode in _VIEWS and user.shape.size == value.shape.size and user.name != inside.root:
            total += _read(inside, users, user, whole)
        else:
            return whole
    return min(total, whole)


def _written(inside: Computation, root: Instruction) -> float:
    if root.opcode == "tuple":
        return sum(_written(inside, inside.instructions[name]) for name in root.operands)
    if root.opcode == "dynamic-update-slice":
        return inside.operand(root, 1).bytes
    if root.opcode in ("bitcast", "convert", "copy") and inside.operand(root, 0).opcode == "dynamic-update-slice":
        return inside.operand(inside.operand(root, 0), 1).bytes
    return root.bytes
