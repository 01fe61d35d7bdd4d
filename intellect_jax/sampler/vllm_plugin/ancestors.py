"""No orphans: vLLM's engine and its workers end when the server does, however that ended."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

_EVERY = 1.0  # seconds


def end_with_server() -> None:
    """Watches, on a thread of this worker, its parent and that one's parent: the engine and the server.

    vLLM's processes do not notice when the server is killed: they keep their memory, and a GPU, for ever.
    """
    engine = os.getppid()
    server = parent_of(engine)
    if server is not None:
        threading.Thread(target=_watch, args=(engine, server), name="ancestors", daemon=True).start()


def parent_of(pid: int) -> int | None:
    """None when the process is gone, or where there is no /proc."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError):
        return None


def _watch(engine: int, server: int) -> None:
    while os.getppid() == engine and parent_of(engine) == server:
        time.sleep(_EVERY)
    if os.getppid() == engine:
        os.kill(engine, signal.SIGKILL)
    os._exit(1)
