"""FLOPs of convolutions, which is what TPU compilers make of matmuls, batched ones with odd windows included."""

from __future__ import annotations

import re
from math import gcd, prod

from launch.plan.hlo import Instruction, Shape

_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_WINDOW = re.compile(r"window=\{([^}]*)\}")
_GROUPS = re.compile(r"(feature|batch)_group_count=(\d+)")


def convolution_flops(instruction: Instruction, lhs: Shape, rhs: Shape) -> float:
    """2 x multiplications of real elements: positions in padding or in dilation holes cost nothing."""
    match = _LABELS.search(instruction.attributes)
    assert match is not None, instruction.attributes[:200]
    left, right, out = match.groups()
    groups = dict(_GROUPS.findall(instruction.attributes))
    spatial = sorted(label for label in right if label.isdigit())
    valid = prod(
        _valid(lhs.dims[left.index(d)], rhs.dims[right.index(d)], instruction.shape.dims[out.index(d)], window)
        for d, window in zip(spatial, _windows(instruction, len(spatial)), strict=True)
    )
    batch = instruction.shape.dims[out.index("b")]
    features = instruction.shape.dims[out.index("f")]
    inputs = rhs.dims[right.index("i")]
    return 2.0 * batch * features * inputs * valid / int(groups.get("batch", 1))


def _windows(instruction: Instruction, count: int) -> list[dict[str, str]]:
    match = _WINDOW.search(instruction.attributes)
    fields = dict(item.split("=") for item in match[1].split()) if match else {}
    return [{name: value.split("x")[i] for name, value in fields.items()} for i in range(count)]


def _valid(size: int, kernel: int, out: int, window: dict[str, str]) -> int:
    """Pairs (output position, kernel position) that meet an element of the input along one dimension."""
    stride, dilate, rhs_dilate = (int(window.get(key, 1)) for key in ("stride", "lhs_dilate", "rhs_dilate"))
    low = int(window.get("pad", "0_0").split("_")[0])
    return sum(_meeting(position * rhs_dilate - low, stride, dilate, size, out) for position in range(kernel))


def _meeting(offset: int, stride: int, dilate: int, size: int, out: int) -> int:
    """How many o of 0 ... out-1 have o * stride + offset = dilate * i with i of 0 ... size-1."""
    first = max(0, -(offset // stride))
    last = min(out - 1, (dilate * (size - 1) - offset) // stride)
    period = dilate // gcd(stride, dilate)  # of the remainders of o * stride by dilate
    hit = next((o for o in range(first, first + period) if (o * stride + offset) % dilate == 0), None)
    return 0 if hit is None or hit > last else (last - hit) // period + 1
