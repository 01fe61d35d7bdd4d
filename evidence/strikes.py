"""Starts a run as a person would, waits for a moment of it, and sends a signal to one of its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from intellect_jax.monitor.metrics import read_metrics

ROOT = Path(__file__).parents[1]
ROLES = ("trainer", "orchestrator", "sampler", "env")
T = TypeVar("T")


def start(run_dir: Path, *overrides: str, config: str = "configs/debug_cpu.py") -> subprocess.Popen[bytes]:
    """The recipe ``config`` with ``overrides``, in a process; what it says goes to ``<run_dir>.out``."""
    words = (f"--config.run.root={run_dir.parent}", f"--config.run.name={run_dir.name}", *overrides)
    command = [sys.executable, "-m", "launch", f"--config={config}", *words]
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{run_dir}.out", "ab") as out:
        return subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)


def said(run_dir: Path) -> str:
    return Path(f"{run_dir}.out").read_text(errors="replace")


def wait_for(condition: Callable[[], T | None], what: str, timeout: float) -> T:
    """The first true value of ``condition``; raises TimeoutError after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {what} within {timeout:.0f} s")
        time.sleep(0.05)
    return value


def pid_of(role: str, run_dir: Path) -> int | None:
    """The process of a role of this run."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if role.encode() in words and any(str(run_dir).encode() in word for word in words):
            return int(folder.name)
    return None


def steps_done(run_dir: Path, role: str = "trainer") -> int:
    """The last step that was ever done; ``role`` "sft": of the supervised ones."""
    if not run_dir.exists():
        return 0
    return max((row["step"] for row in read_metrics(run_dir) if row["role"] == role), default=0)


def strike(role: str, run_dir: Path, number: signal.Signals, timeout: float = 60.0) -> None:
    """Sends a signal to a role, waiting for it to be there."""
    os.kill(wait_for(lambda: pid_of(role, run_dir), f"process of {role}", timeout), number)
