import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def clone(tmp_path_factory):
    """A stand-in for a clone in which the demo has run. Made in a process of its own: only that one needs JAX."""
    folder = tmp_path_factory.mktemp("clone")
    argv = [sys.executable, "-m", "tests.docs.workspace", str(folder)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    made = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, timeout=120)
    assert made.returncode == 0, made.stderr.decode()
    return folder
