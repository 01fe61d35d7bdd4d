"""When a dead process is worth another start, and how soon."""

from __future__ import annotations

from dataclasses import dataclass

from launch.exit_codes import START_ME_AGAIN


@dataclass(frozen=True)
class Death:
    """One unexpected end of a process."""

    time: float  # monotonic seconds
    exit_code: int  # negative: the signal that killed it
    lived: float  # seconds
    last_words: str  # out of its log


@dataclass(frozen=True)
class RestartPolicy:
    """Errors repeat themselves, kills need not: a process that ends itself with an error gets fewer tries.

    Counted over the last ``window`` seconds.
    """

    errors: int = 3  # ends with an error code, one after the other, that make a crash loop
    deaths: int = 10  # ends of any kind, but the ones on purpose, that do
    window: float = 300.0
    first_delay: float = 0.5  # seconds; doubles with each recent death
    longest_delay: float = 15.0

    def delay(self, deaths: list[Death]) -> float | None:
        """Seconds to wait before the next start after these deaths, newest last; None: a crash loop, give up."""
        recent = [d for d in deaths if deaths[-1].time - d.time <= self.window and d.exit_code != START_ME_AGAIN]
        last = recent[-self.errors :]
        if len(last) == self.errors and all(d.exit_code >= 0 for d in last):
            return None
        if len(recent) >= self.deaths:
            return None
        return min(self.longest_delay, self.first_delay * 2.0 ** max(0, len(recent) - 1))
