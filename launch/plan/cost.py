"""What one execution of a compiled program costs on one device: matmul FLOPs, memory traffic, collectives.

Loops are multiplied by their trip counts, which XLA's own ``cost_analysis`` does not do; of a conditional the dearer
branch counts. FLOPs are those of matrix products (dots, convolutions, library calls): all else is bound by memory.
Traffic is what every kernel reads and writes; what happens within a fusion stays on the chip.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from launch.plan.hlo import Computation, Instruction, Module, Shape
from launch.plan.kernels import known_kernel
from launch.plan.loops import trip_count
from launch.plan.traffic import traffic
from launch.plan.windows import convolution_flops

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_DIMS = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
_GROUPS = re.compile(r"(?:replica_groups|source_target_pairs)=(mesh\[.*?\}|\{\}|\{\{.*?\}\}|\[\S*)")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_TOKAMAX = re.compile(r'__type[\\": ]+tokamax\.[\w.]*\.(\w+)')
_OP_NAME = re.compile(r'op_name="([^"]*)"')


@dataclass(frozen=True)
class Collective:
    """One kind of collective. ``bytes`` of one device's larger side: what all-gather makes, reduce-scatter takes."""

    kind: str
    bytes: float
    groups: str  # as the program names them


@dataclass
class Cost:
    """Of one device. ``kernels``: executions of kernels whose FLOPs the text does not tell, by name."""

    flops: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))  # by dtype of the factors
    bytes: float = 0.0
    collectives: Counter[Collective] = field(default_factory=Counter)  # -> executions
    kernels: Counter[str] = field(default_factory=Counter)
    unknown_loops: int = 0  # counted once, for their length is not known

    @property
    def total_flops(self) -> float:
        return sum(self.flops.values())

    def add(self, other: Cost, times: int = 1) -> None:
        for dtype, flops in other.flops.items():
            self.flops[dtype] += flops * times
        for collective, executions in other.collectives.items():
            self.collectives[collective] += executions * times
        for kernel, executions in other.kernels.items():
            self.kernels[kernel] += executions * times
        self.bytes += other.bytes * times
        self.unknown_loops += other.unknown_loops


def count(module: Module, kernel_flops: Mapping[str, float] | None = None) -> Cost:
    """Of the entry computation. ``kernel_flops``: FLOPs of one execution of hand-written kernels, by name."""
    return _Counter(module, kernel_flops or {}).computation(module.entry, fused=False)


class _Counter:
    def __init__(self, module: Module, kernel_flops: Mapping[str, float]):
        self.module, self.kernel_flops = module, kernel_flops
        self.known: dict[tuple[str, bool], Cost] = {}

    def computation(self, name: str, fused: bool) -> Cost:
        if (name, fused) not in self.known:
            total, computation = Cost(), self.module.computations[name]
            for instruction in computation.instructions.values():
                total.add(self.instruction(computation, instruction, fused))
            self.known[name, fused] = total
        return self.known[name, fused]

    def instruction(self, where: Computation, instruction: Instruction, fused: bool) -> Cost:
        opcode, cost = instruction.opcode, Cost()
        if opcode == "while":
            return self._loop(where, instruction, fused)
        if opcode == "conditional":
            branches = [self.computation(branch, fused) for branch in instruction.branches]
            return max(branches, key=lambda branch: (branch.total_flops, branch.bytes))
        if opcode == "dot":
            cost.flops[_factor(where, instruction).dtype] += _dot_flops(where, instruction)
        elif opcode == "convolution":
            operands = [where.operand(instruction, i).shape for i in (0, 1)]
            cost.flops[operands[0].dtype] += convolution_flops(instruction, *operands)
        elif opcode == "custom-call":
            self._custom_call(where, instruction, cost)
        elif kind := _collective_kind(opcode):
            cost.collectives[_collective(where, instruction, kind)] += 1
        elif "calls" in instruction.called or opcode == "call":
            inside = instruction.called.get("calls") or instruction.called["to_apply"]
            cost.add(self.computation(inside, fused or opcode == "fusion"))
        for inside in instruction.branches if opcode == "custom-call" else ():
            cost.add(self.computation(inside, True))
        if not fused:
            cost.bytes += traffic(self.module, where, instruction)
        return cost

    def _loop(self, where: Computation, instruction: Instruction, fused: bool) -> Cost:
        times, cost = trip_count(self.module, where, instruction), Cost()
        body = self.computation(instruction.called["body"], fused)
        cost.add(body, 1 if times is None else times)
        cost.unknown_loops += times is None
        return cost

    def _custom_call(self, where: Computation, instruction: Instruction, cost: Cost) -> None:
        match = _TARGET.search(instruction.attributes)
        target = match[1] if match else ""
        if "cublas" in target:
            cost.flops[_factor(where, instruction).dtype] += _gemm_flops(where, instruction)
        elif "fmha" in target:
            cost.flops[_factor(where, instruction).dtype] += _fmha_flops(where, instruction, target)
        elif kind := kernel_name(instruction, target):
            flops = self.kernel_flops.get(kind) or known_kernel(kind, where, instruction)
            if flops:
                cost.flops[_factor(where, instruction).dtype] += flops
            else:
                cost.kernels[kind] += 1


def kernel_name(instruction: Instruction, target: str) -> str:
    """The name of a hand-written (Pallas) kernel, empty for any other custom call."""
    if not any(word in target for word in ("triton", "mosaic", "tpu_custom_call")):
        return ""
    if match := _TOKAMAX.search(instruction.attributes):
        return match[1]
    match = _OP_NAME.search(instruction.attributes)
    return match[1].rpartition("/")[2] if match else target


def _factor(where: Computation, instruction: Instruction) -> Shape:
    return where.operand(instruction, 0).shape


def _dot_flops(where: Computation, instruction: Instruction) -> float:
    match = _DIMS.search(instruction.attributes)
    contracted = [int(d) for d in match[1].split(",") if d] if match else []
    return 2.0 * instruction.shape.size * prod(_factor(where, instruction).dims[d] for d in contracted)


def _backend_config(instruction: Instruction) -> dict:
    _, _, text = instruction.attributes.partition("backend_config=")
    try:
        return json.JSONDecoder().raw_decode(text)[0] if text.startswith("{") else {}
    except ValueError:
        return {}


def _gemm_flops(where: Computation, instruction: Instruction) -> float:
    """cuBLAS: the result comes first, a workspace after it."""
    config = _backend_config(instruction).get("gemm_backend_config", {})
    numbers = config.get("dot_dimension_numbers", {})
    contracted = [int(d) for d in numbers.get("lhs_contracting_dimensions", [])]
    return 2.0 * instruction.shapes[0].size * prod(_factor(where, instruction).dims[d] for d in contracted)


def _fmha_flops(where: Computation, instruction: Instruction, target: str) -> float:
    """cuDNN attention: two matmuls forward and five backward of [S, C] x [C, T], half of them under a causal mask.

    Queries and keys are [batch, length, heads, width].
    """
    q, k = (where.operand(instruction, i).shape.dims for i in (0, 1))
    config = _backend_config(instruction).get("cudnn_fmha_backend_config", {})
    matmuls = 5 if "Backward" in target else 2
    return matmuls * 2.0 * prod(q) * k[1] * (0.5 if "CAUSAL" in str(config.get("mask_type")) else 1.0)


def _collective_kind(opcode: str) -> str:
    kind = opcode.removesuffix("-start")
    return kind if kind in COLLECTIVES else ""


def _collective(where: Computation, instruction: Instruction, kind: str) -> Collective:
    taken = sum(where.instructions[name].bytes for name in instruction.operands)
    if kind == "all-gather":
        made = instruction.bytes
        return Collective(kind, made - taken if instruction.opcode.endswith("-start") else made, _groups(instruction))
    return Collective(kind, taken, _groups(instruction))


def _groups(instruction: Instruction) -> str:
    match = _GROUPS.search(instruction.attributes)
    return match[1].rstrip(",") if match else ""
