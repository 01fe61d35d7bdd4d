"""Memory that a process on a CPU keeps from step to step, instead of handing it back and asking for it again.

glibc maps large arrays anew each time, and the kernel clears every page of them: a seventh of a training step.
"""

from __future__ import annotations

import ctypes

from ml_collections import ConfigDict

from launch import estimates

# Options of mallopt(3), by their numbers in malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_PAD = 1 << 28  # bytes by which the heap grows at least
_NEVER = -1


def keep_on_a_cpu(config: ConfigDict) -> None:
    """For a trainer's process, before the first thread."""
    if estimates.runs_on_cpu(config.trainer.platform):
        keep_memory()


def keep_memory() -> bool:
    """Returns whether the C library knows how. Before the first thread, whose allocations would have an arena apart."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    options = {_MMAP_MAX: 0, _TRIM_THRESHOLD: _NEVER, _TOP_PAD: _PAD, _ARENA_MAX: 1}
    return all([mallopt(option, value) for option, value in options.items()])
