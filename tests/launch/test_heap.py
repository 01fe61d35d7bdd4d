"""Memory stays with the process: in a process of its own, for it cannot be undone."""

import subprocess
import sys
from pathlib import Path

import pytest

from intellect_jax.config import default_config
from launch import heap

ROOT = Path(__file__).parents[2]
USE = """
import resource, sys
from launch.heap import keep_memory
if sys.argv[1] == "kept" and not keep_memory():
    sys.exit(5)
import numpy as np
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(2):  # all that it ever needs at once
    some = [np.ones(n << 20, np.uint8) for n in (64, 40, 3)]
    del some
before = faults()
for _ in range(10):
    some = [np.ones(n << 20, np.uint8) for n in (64, 40, 3)]
    del some
print(faults() - before)
"""


def faults(how: str) -> int:
    """How often the kernel had to find memory, while 1070 MiB were used."""
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", USE, how], env=env, capture_output=True, text=True, timeout=60)
    if done.returncode == 5:
        pytest.skip("another C library")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_what_is_freed_is_used_again_without_asking_the_kernel():
    assert faults("kept") < 0.2 * faults("left alone")


@pytest.mark.parametrize(("platform", "kept"), [("cpu", 1), ("cuda", 0)])
def test_only_on_a_cpu(platform, kept, monkeypatch):
    calls = []
    monkeypatch.setattr(heap, "keep_memory", lambda: calls.append(1))
    config = default_config()
    config.trainer.platform = platform
    heap.keep_on_a_cpu(config)
    assert len(calls) == kept
