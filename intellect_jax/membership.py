"""Samplers that joined a run while it goes on: a file for each in ``<run>/fleet``, written by it, read by the fleet."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

FOLDER = "fleet"  # of a run directory


@dataclass(frozen=True)
class Member:
    name: str  # of the role, as in its log and its metrics
    url: str
    host: str
    pid: int
    since: float  # unix seconds

    @property
    def here(self) -> bool:
        return self.host == socket.gethostname()

    @property
    def dead(self) -> bool:
        """Whether its process is known to be gone: one on another host never is."""
        if not self.here:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:  # it is somebody else's
            return False
        return False


def register(run_dir: Path, name: str, url: str) -> bool:
    """Makes the calling process a member under ``name``; False when another has that name, dead ones not counted."""
    member = Member(name, url, socket.gethostname(), os.getpid(), time.time())
    path = run_dir / FOLDER / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    earlier = _read(path)
    if earlier is not None and earlier.dead:
        path.unlink(missing_ok=True)
    temporary = path.with_name(f".{name}.{os.getpid()}")
    temporary.write_text(json.dumps(asdict(member)) + "\n")
    try:
        os.link(temporary, path)  # whole, and not over another's
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    return True


def unregister(run_dir: Path, name: str) -> None:
    """Takes the file away if it is the calling process's own; no error when it, or the run, is gone."""
    path = run_dir / FOLDER / f"{name}.json"
    member = _read(path)
    if member is not None and member.here and member.pid == os.getpid():
        with contextlib.suppress(OSError):
            path.unlink()


def members(run_dir: Path) -> list[Member]:
    """Those that live, as far as is known, by name; what is no such file is passed over."""
    found = [_read(path) for path in sorted((run_dir / FOLDER).glob("*.json"))]
    return [member for member in found if member is not None and not member.dead]


def _read(path: Path) -> Member | None:
    try:
        return Member(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None
