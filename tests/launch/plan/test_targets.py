import pytest

from intellect_jax.errors import UserError
from launch.plan.targets import TARGETS, topology


@pytest.mark.parametrize(
    ("target", "devices", "name"),
    [
        ("h200", 128, "1x16x8"),
        ("h100", 4, "1x1x4"),
        ("v5p", 4, "v5p:2x2x1"),
        ("v5p", 128, "v5p:4x4x8"),
        ("v6e", 128, "v6e:8x16"),
    ],
)
def test_topologies(target, devices, name):
    assert topology(TARGETS[target], devices) == name


@pytest.mark.parametrize(("target", "devices"), [("h200", 12), ("v5p", 100), ("v6e", 512), ("v6e", 2)])
def test_devices_that_cannot_be_bought(target, devices):
    with pytest.raises(UserError, match=f"--devices={devices}"):
        topology(TARGETS[target], devices)
