"""Collectives of real programs on eight devices: kind, bytes, how often, along which axes, over how many nodes."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
ROWS = 64 // 4 * 16 * 4  # bytes of one device's rows


def test_collectives_of_known_size():
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    argv = [sys.executable, "-m", "tests.launch.plan.collectives_run"]
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found == {
        "psum over two axes": [["all-reduce", ROWS, 1, ["data", "fsdp"], 2, 2]],
        "psum over one": [["all-reduce", ROWS, 1, ["tensor"], 2, 1]],
        "six times scatter and gather": [
            ["reduce-scatter", ROWS, 6, ["fsdp"], 2, 1],
            ["all-gather", ROWS, 6, ["fsdp"], 2, 1],
        ],
        "permute": [["collective-permute", ROWS, 1, ["data"], 1, 2]],
        "all to all": [["all-to-all", ROWS, 1, ["tensor"], 2, 1]],
    }
