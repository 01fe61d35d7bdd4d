"""Starting and ending one role's process: its own session, its log, and no life beyond the supervisor's."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

from intellect_jax.children import die_with_parent

# What JAX writes before it ends a process whose peer is gone.
LOST = "Terminating process because the JAX distributed service detected fatal errors"
FATAL = "FATAL"  # a role's last words in its log start with this; what follows is why it ended


def start(argv: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Starts ``argv`` as leader of a new session, with stdout and stderr appended to ``log``.

    On Linux the kernel kills it when the calling *thread* ends for whatever reason, SIGKILL included, so call this from
    the main thread. ``environment`` is added to this process's own.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
            preexec_fn=die_with_parent(),
        )


def kill_group(process: subprocess.Popen[bytes], timeout: float = 10.0) -> None:
    """SIGKILL to the process and all it started in its session; returns when the process is reaped.

    Raises subprocess.TimeoutExpired when the kernel does not let it go within ``timeout`` seconds.
    """
    signal_group(process, signal.SIGKILL)
    process.wait(timeout)


def signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Sends a signal to the process group; a group that is gone is fine."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def reason(words: str) -> str:
    """One line of :func:`last_words`: what follows FATAL, else the last one, where a traceback says what it was."""
    lines = words.splitlines() or [""]
    return lines[0].partition(f" {FATAL} ")[2] or lines[-1]


def last_words(log: Path, offset: int, most_lines: int = 100) -> str:
    """Why a process ended, out of the part of its log from byte ``offset``.

    That is all from the last line that holds FATAL, else what JAX says of a lost process, else the last traceback, else
    the last lines.
    """
    with log.open("rb") as file:
        file.seek(max(offset, log.stat().st_size - 2**20))
        lines = file.read().decode(errors="replace").splitlines()
    for mark in (f" {FATAL} ", LOST, "Traceback (most recent call last):"):
        places = [i for i, line in enumerate(lines) if mark in line]
        if places:
            return "\n".join(_shorten(lines[places[-1] :], most_lines))
    return "\n".join(lines[-15:])


def _shorten(lines: list[str], most: int) -> list[str]:
    if len(lines) <= most:
        return lines
    half = most // 2
    return [*lines[:half], f"    … {len(lines) - 2 * half} lines …", *lines[-half:]]
