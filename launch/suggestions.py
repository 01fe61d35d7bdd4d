"""The nearest right name for a wrong one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher

_NEAR_ENOUGH = 1.2  # of at most 2: below it, a suggestion confuses more than it helps


def nearest(wrong: str, right: Iterable[str]) -> str:
    """``": did you mean 'x'?"`` for the nearest of ``right``, or an empty string when none is near.

    Of dotted names, the last part counts as much as the whole: people forget or mistype the groups before it.
    """

    def likeness(name: str) -> float:
        last = SequenceMatcher(None, wrong.rpartition(".")[2], name.rpartition(".")[2]).ratio()
        return last + (SequenceMatcher(None, wrong, name).ratio() if "." in wrong else last)

    best = max(right, key=likeness)
    return f": did you mean {best!r}?" if likeness(best) >= _NEAR_ENOUGH else ""
