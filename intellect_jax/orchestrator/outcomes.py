"""What became of every task that was ever dispatched: the part of the ledger that grows."""

from __future__ import annotations

import base64
import zlib
from collections import Counter

CODES = {"running": "r", "trained": "t", "no_signal": "n", "error": "e", "stale": "s", "unused": "u"}
NAMES = {code: name for name, code in CODES.items()}


class Outcomes:
    """One byte a task, by task id. Invariant: every id below the length was dispatched and has one outcome."""

    def __init__(self, codes: bytes = b""):
        self._codes = bytearray(codes)

    def __len__(self) -> int:
        return len(self._codes)

    def mark(self, task_id: int, outcome: str) -> None:
        """Sets the outcome of a task; the next new task has the id ``len(self)``."""
        code = ord(CODES[outcome])
        if task_id == len(self._codes):
            self._codes.append(code)
        else:
            self._codes[task_id] = code

    def of(self, outcome: str) -> list[int]:
        """Ids of the tasks with this outcome, in order."""
        return [i for i, code in enumerate(self._codes) if code == ord(CODES[outcome])]

    def counts(self) -> dict[str, int]:
        return {NAMES[chr(code)]: count for code, count in sorted(Counter(self._codes).items())}

    def encode(self) -> str:
        """JSON text, about a fifth of a byte a task."""
        return base64.b64encode(zlib.compress(bytes(self._codes), 1)).decode()

    @classmethod
    def decode(cls, text: str) -> Outcomes:
        return cls(zlib.decompress(base64.b64decode(text)) if text else b"")
