"""A checkpoint goes on, on whatever devices: another mesh shape, another number of them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def run_on(devices, checkpoints, out, *axes):
    env = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, str(Path(__file__).with_name("mesh_run.py")), str(checkpoints), str(out), *axes]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(np.load(out))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(checkpoints of a run on fsdp=4, what that run went on to do)."""
    root = tmp_path_factory.mktemp("meshes")
    return root / "checkpoints", run_on(4, root / "checkpoints", root / "out.npz", "fsdp=4")


@pytest.mark.parametrize("axes", [("expert=2", "fsdp=2"), ()], ids=["expert2_fsdp2", "one_device"])
def test_restored_on_another_mesh(saved, tmp_path, axes):
    checkpoints, expected = saved
    found = run_on(4 if axes else 1, checkpoints, tmp_path / "out.npz", *axes)
    assert found.keys() == expected.keys() and (found["devices"], expected["devices"]) == (4 if axes else 1, 4)
    for name in expected.keys() - {"losses", "devices"}:
        assert found[name].dtype == expected[name].dtype, name
        assert found[name].tobytes() == expected[name].tobytes(), name
    assert len(expected["losses"]) == 10 and np.ptp(expected["losses"]) > 1e-2
    np.testing.assert_allclose(found["losses"], expected["losses"], rtol=1e-5, atol=1e-5)
