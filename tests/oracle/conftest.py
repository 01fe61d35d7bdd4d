"""Where the oracle environment is; its tests are skipped where `make oracle` has not made it."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def oracle_python() -> str:
    """The interpreter that has PyTorch and transformers."""
    path = Path(os.environ.get("ORACLE_PYTHON", ROOT / ".venv-oracle" / "bin" / "python"))
    if not path.exists():
        pytest.skip(f"no oracle environment at {path}: run `make oracle`")
    return str(path)
