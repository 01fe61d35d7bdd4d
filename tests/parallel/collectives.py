"""What a compiled program sends: parsed from its HLO text."""

import re
from collections.abc import Iterator

import numpy as np
from jax.sharding import Mesh

_LINE = re.compile(r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute)\(")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_STRIDED = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_SHAPE = re.compile(r"\w+\[([\d,]*)\]")


def collectives(text: str, mesh: Mesh) -> Iterator[tuple[str, tuple[str, ...], list[tuple[int, ...]]]]:
    """(operation, mesh axes within one group, shapes of its results) of each collective between several devices."""
    for line in text.splitlines():
        if found := _LINE.search(line):
            axes = _axes(line, mesh) if "replica_groups=" in line else ("?",)
            shapes = [tuple(map(int, filter(None, dims.split(",")))) for dims in _SHAPE.findall(found.group(1))]
            if axes:
                yield found.group(2), axes, shapes


def _axes(line: str, mesh: Mesh) -> tuple[str, ...]:
    """The axes along which the devices of the first group differ."""
    if listed := _LISTED.search(line):
        group = np.array([int(device) for device in listed.group(1).split(",")])
    else:
        strided = _STRIDED.search(line)
        assert strided, line
        count, size, dims, order = strided.groups()
        devices = np.arange(int(count) * int(size)).reshape([int(d) for d in dims.split(",")])
        devices = devices.transpose([int(d) for d in order.split(",")]) if order else devices
        group = devices.reshape(int(count), int(size))[0]
    places = np.unravel_index(group, mesh.devices.shape)
    return tuple(axis for axis, place in zip(mesh.axis_names, places, strict=True) if len(set(place.tolist())) > 1)
