"""Run time: seconds for which a run was up, without the pauses between its end and its resumption."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from intellect_jax.monitor.metrics import Row

SILENT = 5.0  # seconds without a row after which a role that writes one every second is taken to be away

Clock = Callable[[Sequence[float] | np.ndarray], np.ndarray]  # unix seconds -> seconds of run time


def run_clock(rows: list[Row]) -> Clock:
    """The run time at any moments; moments within a pause, or outside of the run, fall on its edge."""
    moments: list[float] = []
    run_time: list[float] = []
    total = 0.0
    for begin, end in _sessions(rows):
        moments += [begin, end]
        run_time += [total, total + end - begin]
        total += end - begin
    if not moments:
        return lambda times: np.zeros(len(times))
    return lambda times: np.interp(np.asarray(times, float), moments, run_time)


def _sessions(rows: list[Row]) -> list[tuple[float, float]]:
    """(begin, end) in unix seconds of every stretch in which the run was up; they do not overlap."""
    sessions: list[tuple[float, float]] = []
    for row in rows:
        if not sessions or "run/started" in row:
            begin = max(row["time"], sessions[-1][1]) if sessions else row["time"]
            sessions.append((begin, begin))
        sessions[-1] = (sessions[-1][0], max(sessions[-1][1], row["time"]))
    return sessions
