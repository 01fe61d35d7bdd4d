"""Which mesh axes, and how many nodes, a collective of a compiled program spans.

Programs number devices in the mesh's row-major order; that is also how they fill nodes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_IOTA = re.compile(r"\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_NAMED = re.compile(r"mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}")
_AXIS = re.compile(r"'([^']*)'(?:=(\d+)|:\((\d+)\)(\d+))?")


@dataclass(frozen=True)
class Span:
    """The devices that talk to each other: ``nodes`` nodes with ``per_node`` of them each, along ``axes``."""

    axes: tuple[str, ...]
    per_node: int
    nodes: int

    @property
    def devices(self) -> int:
        return self.per_node * self.nodes


@lru_cache(maxsize=4096)
def _members(text: str, devices: int) -> np.ndarray:
    """Device numbers [groups, members]; raises ValueError for a notation that is not known."""
    if match := _IOTA.match(text):
        groups, size = int(match[1]), int(match[2])
        ids = np.arange(devices).reshape([int(d) for d in match[3].split(",")])
        ids = ids.transpose([int(d) for d in match[4].split(",")]) if match[4] else ids
        return ids.reshape(groups, size)
    if match := _NAMED.match(text):
        return _along(match[1], match[2], match[3], devices)
    if text in ("", "{}"):
        return np.arange(devices)[None]
    listed = [[int(d) for d in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", text)]
    if not listed:
        raise ValueError(f"unknown notation of device groups: {text[:100]}")
    return np.array(listed)


def _along(mesh: str, order: str | None, used: str, devices: int) -> np.ndarray:
    """Groups along the axes ``used`` of a mesh that XLA names itself, e.g. 'axis_0'=4,'axis_1'=2.

    A part of an axis is written 'axis_0':(2)4: of its places, split as [2, 4, rest], those of the middle.
    """
    sizes = [(name, int(size)) for name, size, _, _ in _AXIS.findall(mesh)]
    dims, grouped = [], []
    wanted = {name: (int(before or 1), int(part) if part else 0) for name, _, before, part in _AXIS.findall(used)}
    for name, size in sizes:
        before, part = wanted.get(name, (size, 1))
        part = part or size
        grouped += [False, name in wanted, False]
        dims += [before, part, size // (before * part)]
    axes = sorted(range(len(dims)), key=lambda axis: grouped[axis])
    members = int(np.prod([dim for dim, group in zip(dims, grouped, strict=True) if group]))
    return _ordered(order, devices).reshape(dims).transpose(axes).reshape(-1, members)


def _ordered(order: str | None, devices: int) -> np.ndarray:
    """Device numbers in the mesh's order: all in turn, as [4,2]T(1,0) says, or as listed."""
    if not order:
        return np.arange(devices)
    if match := re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\)?)?", order):
        ids = np.arange(devices).reshape([int(d) for d in match[1].split(",")])
        return ids.transpose([int(d) for d in match[2].split(",")]) if match[2] else ids
    return np.array([int(d) for d in order.split(",")])


def span(text: str, mesh: Mapping[str, int], per_node: int) -> Span:
    """Of the widest group; for a collective-permute, whose groups are pairs, of the farthest pair."""
    devices = int(np.prod(list(mesh.values())))
    members = _members(text, devices)
    places = np.stack(np.unravel_index(members, tuple(mesh.values())))  # [axes, groups, members]
    varies = (places != places[:, :, :1]).any(axis=(1, 2))
    nodes = max(len(set(group // per_node)) for group in members)
    axes = tuple(axis for axis, moves in zip(mesh, varies, strict=True) if moves)
    return Span(axes, max(1, members.shape[1] // nodes), nodes)
