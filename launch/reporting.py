"""Keeps report.html up to date while a run goes on, in a process of its own: the supervisor never waits for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launch import processes

EVERY = 30.0  # seconds between two writings during a run
LAST = 120.0  # seconds that the one at its end may take
FILE = "report.html"


@contextmanager
def kept(run_dir: Path) -> Iterator[None]:
    """While inside, the report is written every EVERY seconds. Call it from the main thread, as ``processes.start``."""
    process = processes.start([*_argv(run_dir), f"--every={EVERY:g}"], {}, _log(run_dir))
    try:
        yield
    finally:
        processes.kill_group(process)
        for unfinished in run_dir.glob(f".{FILE}.*"):
            unfinished.unlink()


def write_last(run_dir: Path) -> str | None:
    """Writes the report of a run that ended; returns what to tell the user when that failed."""
    with _log(run_dir).open("ab") as output:
        try:
            subprocess.run(_argv(run_dir), stdout=output, stderr=output, timeout=LAST, check=True)
        except (subprocess.SubprocessError, KeyboardInterrupt):  # who presses Ctrl-C again does not want to wait
            return f"{FILE} could not be written: see {_log(run_dir)}"
    return None


def _argv(run_dir: Path) -> list[str]:
    return [sys.executable, "-m", "intellect_jax.monitor.report", str(run_dir)]


def _log(run_dir: Path) -> Path:
    return run_dir / "logs" / "report.log"
