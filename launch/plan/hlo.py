"""The text of an optimized HLO module as data: computations, instructions, shapes.

Only what cost counting needs is kept; the syntax is that of ``Compiled.as_text()`` on CPU, CUDA and TPU.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import prod

BYTES = {"pred": 1, "token": 0, "opaque": 0, "tuple": 0}  # others carry their width in bits in their name
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\]")
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_CALLED_LIST = re.compile(r"\b(?:branch_computations|called_computations|calls)=\{([^}]*)\}")


@dataclass(frozen=True)
class Shape:
    """One array. ``dims`` are those of one device."""

    dtype: str  # XLA's name: bf16, f32, s32, pred, ...
    dims: tuple[int, ...]

    @property
    def size(self) -> int:
        return prod(self.dims)

    @property
    def bytes(self) -> float:
        return self.size * dtype_bytes(self.dtype)


@dataclass
class Instruction:
    name: str
    opcode: str
    shapes: tuple[Shape, ...]  # several for a tuple, nested ones flattened
    operands: tuple[str, ...]  # names
    arguments: str  # text between the parentheses
    attributes: str  # text after them
    called: dict[str, str] = field(default_factory=dict)  # body, condition, calls, ... -> computation
    branches: tuple[str, ...] = ()  # of a conditional

    @property
    def shape(self) -> Shape:
        """The (last) array that it makes."""
        return self.shapes[-1]

    @property
    def bytes(self) -> float:
        return sum(shape.bytes for shape in self.shapes)


@dataclass
class Computation:
    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)
    root: str = ""

    def operand(self, instruction: Instruction, index: int) -> Instruction:
        return self.instructions[instruction.operands[index]]


@dataclass
class Module:
    computations: dict[str, Computation]
    entry: str


def dtype_bytes(dtype: str) -> float:
    """Bytes of one element, from the width in the name: f32, bf16, s4, f8e4m3fn, c64."""
    if dtype in BYTES:
        return BYTES[dtype]
    width = re.search(r"\d+", dtype)
    return int(width[0]) / 8 if width else 0


def parse(text: str) -> Module:
    """Raises ValueError for a text without an entry computation."""
    computations: dict[str, Computation] = {}
    current, entry = None, ""
    for line in text.splitlines():
        stripped = line.strip()
        if current is None:
            if head := _HEAD.match(stripped):
                current = Computation(head[2])
                entry = head[2] if head[1] else entry
        elif line.startswith("}"):  # perhaps with attributes after it
            computations[current.name] = current
            current = None
        elif match := _INSTRUCTION.match(stripped):
            current.instructions[match[2]] = _instruction(match[2], stripped[match.end() :])
            current.root = match[2] if match[1] else current.root
    if not entry:
        raise ValueError("this text has no ENTRY computation: it is no HLO module")
    return Module(computations, entry)


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    opcode = _OPCODE.match(text, end)
    assert opcode is not None, text[:200]
    close = _closing(text, opcode.end() - 1)
    arguments, attributes = text[opcode.end() : close], text[close + 1 :]
    called = dict(_CALLED.findall(attributes)) if "=%" in attributes else {}
    branches: list[str] = []
    for group in _CALLED_LIST.findall(attributes):
        branches += _NAME.findall(group)
    if opcode[1] == "conditional" and "true_computation" in called:
        branches = [called.pop("true_computation"), called.pop("false_computation")]
    operands = tuple(_NAME.findall(arguments))
    return Instruction(name, opcode[1], _shapes(text[:end]), operands, arguments, attributes, called, tuple(branches))


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at ``start`` closes; quoted text does not count."""
    depth, quoted = 0, False
    for index in range(start, len(text)):
        char = text[index]
        if char == '"' and text[index - 1] != "\\":
            quoted = not quoted
        elif quoted:
            continue
        elif char == "(":
            depth += 1
        elif char == ")":
            depth -= 1
            if depth == 0:
                return index
    raise ValueError(f"unbalanced parentheses: {text[:200]}")


def _shapes(text: str) -> tuple[Shape, ...]:
    found = _ARRAY.findall(text)
    return tuple(Shape(dtype, tuple(int(d.lstrip("<=")) for d in dims.split(",") if d)) for dtype, dims in found)
