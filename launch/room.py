"""Nothing is started on a full disk: it would die at its first write, and soon count as a crash loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from intellect_jax.monitor.room import PATIENCE, RESERVE, free_bytes


class Room:
    """The disk of a run; ``say`` gets a line when it is found full and one when it is not any more."""

    def __init__(self, folder: Path, say: Callable[[str], None], patience: float = PATIENCE):
        self._folder, self._say, self._patience = folder, say, patience
        self._full_since: float | None = None

    def is_there(self, now: float) -> bool:
        """``now``: monotonic seconds."""
        free = free_bytes(self._folder)
        if free >= RESERVE:
            if self._full_since is not None:
                self._say(f"There is room on the disk of {self._folder} again, after {now - self._full_since:.0f} s")
            self._full_since = None
            return True
        if self._full_since is None:
            self._full_since = now
            self._say(
                f"The disk of {self._folder} is full, {free >> 20} MiB are free: nothing starts again with less than "
                f"{RESERVE >> 20} MiB, and the run ends in {self._patience:.0f} s unless there is room"
            )
        return False

    def given_up(self, now: float) -> bool:
        """Whether it has been full for too long."""
        return self._full_since is not None and now - self._full_since > self._patience
