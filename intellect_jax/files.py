"""Small JSON files: replaced while others read them, or sealed against damage."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import xxhash


def cache_folder() -> Path:
    """Where what is measured, compiled or converted once on a machine is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "intellect_jax"


def write_json(path: Path, value: Any) -> None:
    """Writes strict JSON whole or not at all; raises ValueError for NaN and infinity, which JSON cannot hold."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """``path`` holds either its old or its whole new content, even after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def sealed(value: dict[str, Any]) -> str:
    """JSON of ``value`` that :func:`unseal` takes only as it is: not a byte of it may change."""
    text = json.dumps(value, allow_nan=False)
    return json.dumps({**value, "seal": xxhash.xxh3_64_hexdigest(text.encode())})


def unseal(raw: bytes) -> dict[str, Any]:
    """The value that was sealed; raises ValueError when ``raw`` is not what :func:`sealed` wrote."""
    value = json.loads(raw)
    if not isinstance(value, dict) or value.pop("seal", None) is None or sealed(value).encode() != raw:
        raise ValueError("its content does not match its seal")
    return value
