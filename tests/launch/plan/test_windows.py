"""Convolutions, as TPU compilers write matmuls."""

import numpy as np
import pytest

from launch.plan import windows
from launch.plan.hlo import Shape, parse


def brute(offset, stride, dilate, size, out):
    places = {i * dilate for i in range(size)}
    return sum(o * stride + offset in places for o in range(out))


def test_positions_are_those_of_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        stride, dilate, size, out = (int(n) for n in rng.integers(1, 7, 4))
        offset = int(rng.integers(-12, 12))
        assert windows._meeting(offset, stride, dilate, size, out) == brute(offset, stride, dilate, size, out)


@pytest.mark.parametrize(
    ("shapes", "result", "attributes", "flops"),
    [
        # heads as a window that the output walks: [16, 256 tokens, 64] x [64, 8 heads, 32]
        (
            ((1, 16, 256), (256, 8, 32)),
            (8, 16, 32),
            "window={size=8 pad=7_7 rhs_reversal=1}, dim_labels=0bf_i0o->0bf",
            8,
        ),
        # a batched matmul: batch 4 as a dilated window that meets itself alone
        (((8, 4, 16), (32, 4, 16)), (4, 8, 32), "window={size=4 stride=3 lhs_dilate=4}, dim_labels=b0f_o0i->0bf", 4),
    ],
)
def test_matmuls_in_disguise(shapes, result, attributes, flops):
    left, right = (",".join(map(str, shape)) for shape in shapes)
    out = ",".join(map(str, result))
    text = f"""
ENTRY %main (a: f32[{left}], b: f32[{right}]) -> f32[{out}] {{
  %a = f32[{left}] parameter(0)
  %b = f32[{right}] parameter(1)
  ROOT %c = f32[{out}] convolution(%a, %b), {attributes}
}}"""
    convolution = parse(text).computations["main"].instructions["c"]
    labels = attributes.split("dim_labels=")[1]
    batch, features = (result[labels.split("->")[1].index(label)] for label in "bf")
    inputs = shapes[1][labels.split("_")[1].index("i")]
    found = windows.convolution_flops(convolution, Shape("f32", shapes[0]), Shape("f32", shapes[1]))
    assert found == 2 * batch * features * inputs * flops
