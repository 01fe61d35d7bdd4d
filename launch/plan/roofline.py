"""The shortest time that hardware allows a step, from the costs of its program, and what sets it.

Collectives are timed as rings over links that are otherwise idle: all-gather and reduce-scatter move (n-1)/n of the
larger side through every device, all-reduce twice that, all-to-all all but what stays (see NCCL's "bus bandwidth").
Groups that span nodes share the ports of their devices in a node.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from launch.plan.targets import Target


@dataclass(frozen=True)
class Traffic:
    """Collectives of one kind, size and group: ``executions`` a step, ``bytes`` each (see cost.Collective)."""

    kind: str
    bytes: float
    executions: int
    axes: tuple[str, ...]
    per_node: int
    nodes: int

    @property
    def total(self) -> float:
        return self.bytes * self.executions

    @property
    def place(self) -> str:
        return "x".join(self.axes) or "none"


@dataclass
class Roofline:
    """Seconds of a step. ``overlapped``: everything at once; ``serial``: links wait. The truth lies between."""

    compute: float
    memory: float
    links: dict[str, float] = field(default_factory=dict)  # by mesh axes
    model_flops: float = 0.0  # of all devices
    peak: float = 0.0  # FLOP/s of all devices

    @property
    def parts(self) -> dict[str, float]:
        return {"compute": self.compute, "memory": self.memory, **{f"links {a}": s for a, s in self.links.items()}}

    @property
    def overlapped(self) -> float:
        return max(max(self.compute, self.memory), sum(self.links.values()))

    @property
    def serial(self) -> float:
        return max(self.compute, self.memory) + sum(self.links.values())

    @property
    def bound(self) -> str:
        return max(self.parts, key=lambda part: self.parts[part])

    def mfu(self, seconds: float) -> float:
        return self.model_flops / (self.peak * seconds) if seconds else 0.0


def roofline(
    target: Target, flops: dict[str, float], traffic: float, collectives: Iterable[Traffic], model: float, devices: int
) -> Roofline:
    """Of one device's executed ``flops`` by dtype, bytes of memory ``traffic`` and collectives.

    ``model``: model FLOPs of all ``devices``.
    """
    links: dict[str, float] = defaultdict(float)
    for each in collectives:
        links[each.place] += each.executions * seconds(target, each)
    compute = sum(count / target.flops(dtype) for dtype, count in flops.items())
    return Roofline(compute, traffic / target.bandwidth, dict(links), model, target.bf16 * devices)


def seconds(target: Target, each: Traffic) -> float:
    """Of one execution."""
    devices = each.per_node * each.nodes
    if devices == 1:
        return 0.0
    if each.kind == "collective-permute":
        return each.bytes / (target.network if each.nodes > 1 else target.link)
    if "all-to-all" in each.kind:
        outside = each.bytes * (devices - each.per_node) / devices / target.network
        return max(outside, each.bytes * (each.per_node - 1) / devices / target.link)
    times = 2 if each.kind == "all-reduce" else 1
    outside = each.bytes * (each.nodes - 1) / each.nodes / (each.per_node * target.network)
    return times * max(outside, each.bytes * (devices - 1) / devices / target.link)
