"""How long a role has been silent, from the file that its watchdog writes every second."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path


class Pulse:
    """Watches one heartbeat file from the start of its process on.

    What counts is when a change of the file was seen, on this process's monotonic clock: neither a stopped supervisor
    nor a changed wall clock makes a role look dead.
    """

    def __init__(self, file: Path, now: float):
        """Removes what an earlier process left. ``now``: monotonic seconds."""
        file.unlink(missing_ok=True)
        self._file, self._seen, self._changed = file, 0, now

    def silence(self, now: float) -> float:
        """Seconds since the last sign of life, or since the start."""
        with contextlib.suppress(FileNotFoundError):
            written = self._file.stat().st_mtime_ns
            if written != self._seen:
                self._seen, self._changed = written, now
        return now - self._changed

    def last_words(self, now: float) -> str:
        """``since 12:30:01, while training batch 7``."""
        since = time.strftime("%H:%M:%S", time.localtime(time.time() - self.silence(now)))
        try:
            return f"since {since}, while {json.loads(self._file.read_text())['phase']}"
        except (OSError, ValueError):
            return f"since its start at {since}"
