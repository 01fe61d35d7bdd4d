"""Full disks are waited for: what can't be written now can be in a minute, and a role that waits loses nothing.

What is large asks for its room beforehand. RESERVE stays for what is small and asks nobody: metrics, heartbeats, logs.
"""

from __future__ import annotations

import errno
import logging
import shutil
import time
from pathlib import Path

from intellect_jax.monitor import watchdog

log = logging.getLogger(__name__)

RESERVE = 32 << 20  # bytes
PATIENCE = 600.0  # seconds
POLL = 0.5  # seconds


def free_bytes(folder: Path) -> int:
    """What is free on the disk of a folder that may not exist yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def wait_for_room(folder: Path, nbytes: int, what: str, patience: float = PATIENCE) -> None:
    """Returns when the disk of ``folder`` has room for ``nbytes`` and RESERVE; says so if that takes a while.

    Raises OSError (ENOSPC) after ``patience`` seconds.
    """
    begun, needed = time.monotonic(), nbytes + RESERVE
    told = False
    while (free := free_bytes(folder)) < needed:
        if time.monotonic() - begun > patience:
            raise OSError(errno.ENOSPC, f"{what}: {_mib(free)} free after {patience:.0f} s, needed {_mib(needed)}")
        if not told:
            log.warning(
                "%s waits for room on the disk of %s: %s free, needed %s", what, folder, _mib(free), _mib(needed)
            )
            told = True
        watchdog.progress(f"waiting for room on the disk: {what}")
        time.sleep(POLL)
    if told:
        log.warning("%s goes on after %.0f s: there is room on the disk again", what, time.monotonic() - begun)


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:,.0f} MiB"
