import pytest

from launch.plan.roofline import Traffic, roofline, seconds
from launch.plan.targets import TARGETS

H200 = TARGETS["h200"]


@pytest.mark.parametrize(
    ("kind", "per_node", "nodes", "expected"),
    [
        ("all-gather", 8, 1, 8e9 * 7 / 8 / 450e9),
        ("reduce-scatter", 8, 1, 8e9 * 7 / 8 / 450e9),
        ("all-reduce", 8, 1, 2 * 8e9 * 7 / 8 / 450e9),
        ("all-to-all", 8, 1, 8e9 * 7 / 8 / 450e9),
        ("all-gather", 8, 16, 8e9 * 15 / 16 / (8 * 50e9)),  # eight ports a node, 15/16 come from outside
        ("all-gather", 1, 16, 8e9 * 15 / 16 / 50e9),
        ("all-to-all", 1, 16, 8e9 * 15 / 16 / 50e9),
        ("collective-permute", 1, 2, 8e9 / 50e9),
        ("collective-permute", 2, 1, 8e9 / 450e9),
        ("all-reduce", 1, 1, 0.0),
    ],
)
def test_a_ring_takes_what_its_slowest_link_takes(kind, per_node, nodes, expected):
    assert seconds(H200, Traffic(kind, 8e9, 1, ("fsdp",), per_node, nodes)) == pytest.approx(expected)


def test_what_takes_longest_bounds_the_step():
    gather = Traffic("all-gather", 8e9, 10, ("fsdp",), 8, 1)
    line = roofline(H200, {"bf16": 989.4e12, "f32": 494.7e12}, 4.8e12, [gather, gather], 989.4e12, 1)
    links = 20 * 8e9 * 7 / 8 / 450e9
    assert line.compute == pytest.approx(2.0) and line.memory == pytest.approx(1.0)
    assert line.bound == "compute" and line.links == {"fsdp": pytest.approx(links)}
    assert line.overlapped == pytest.approx(2.0) and line.serial == pytest.approx(2.0 + links)
    assert line.mfu(line.overlapped) == pytest.approx(0.5)
    assert roofline(H200, {"bf16": 1e12}, 4.8e12, [], 1e12, 1).bound == "memory"
    assert roofline(H200, {"bf16": 1e12}, 0.0, [gather], 1e12, 1).bound == "links fsdp"
