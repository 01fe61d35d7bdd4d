"""What a configuration key is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from intellect_jax.config.checks import Check


@dataclass(frozen=True)
class Key:
    """One configuration key. ``check`` returns what would be right, or None when the value is fine."""

    default: Any
    doc: str
    check: Check | None = None


Section = dict[str, Any]  # name -> Key, or a section of its own
