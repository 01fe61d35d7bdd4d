"""NCCL without GPUs, for tests: the stand-in, compiled."""

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("nccl_stand_in.c")


def stand_in(folder):
    """The shared library."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    library = folder / "nccl_stand_in.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, SOURCE], check=True)
    return str(library)
