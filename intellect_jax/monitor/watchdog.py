"""Nothing waits for ever unseen: signs of life of a role, what it is at, and what happens when it stands still.

A process has one watchdog, started before its role is. From then on a thread writes ``<run>/heartbeats/<role>`` every
second: one JSON line that says what the role is at, since when and for whom it waits. The supervisor looks at the age
of the file, other roles at its content. The role tells what it is at with :func:`progress` or, from an event loop that
is never at one thing, with :func:`poll`. Without a started watchdog both do nothing.

A role that stands still for ``timeout`` seconds writes the stacks of all threads to
``<run>/logs/<role>.stacks.txt`` and says in its log who waits for whom. Then it ends with :data:`NO_PROGRESS`, to be
started again, unless it waits for another role that is alive and does not wait for it in turn: then the matter is not
its own, and it waits on.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

NO_PROGRESS = 71  # exit code of a role that stood still
BEAT = 1.0  # seconds between two signs of life
STOPPED = 10 * BEAT  # a watching thread that sleeps so long was stopped together with all others
FOLDER = "heartbeats"


@dataclass(frozen=True)
class Standing:
    """What a role is at. Times are Unix seconds."""

    phase: str
    since: float  # it made its last progress
    waits_for: str = ""  # a role: "sampler" means every one of them

    def describe(self, role: str) -> str:
        waits = f" (waits for {self.waits_for})" if self.waits_for else ""
        clock = time.strftime("%H:%M:%S", time.localtime(self.since))
        return f"{role}: {self.phase}{waits} since {clock}"


class Watchdog:
    """Feeds the heartbeat file and watches its own process; see the module. Use the functions below instead."""

    def __init__(self, run_dir: Path, role: str, timeout: float, partner_timeout: float):
        """``timeout``: seconds of standing still; ``partner_timeout``: of silence after which another role is dead."""
        self._run_dir, self._role = run_dir, role
        self._timeout, self._partner_timeout = timeout, partner_timeout
        self._file = run_dir / FOLDER / role
        self._standing = Standing("starting", time.time())
        self._moved = self._told = time.monotonic()
        self._mark: Any = None
        self._polled = False
        self._mute = False  # it could not write lately, and has said so

    def start(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def progress(self, phase: str, waits_for: str = "") -> None:
        self._mark, self._polled = None, False
        self._move(phase, waits_for)

    def poll(self, phase: str, mark: Any, waits_for: str = "") -> None:
        self._told, self._polled = time.monotonic(), True
        if mark != self._mark or (phase, waits_for) != (self._standing.phase, self._standing.waits_for):
            self._mark = mark
            self._move(phase, waits_for)

    def rest(self, phase: str) -> None:
        self._mark, self._polled = None, False
        self._move(phase, "")
        self._moved = math.inf

    def _move(self, phase: str, waits_for: str) -> None:
        self._standing = Standing(phase, time.time(), waits_for)
        self._moved = self._told = time.monotonic()

    def _run(self) -> None:
        while True:
            begun = time.monotonic()
            try:
                self._beat()
                self._mute = False
            except OSError as error:  # a full disk: what it does stays unsaid, that it lives does not
                if not self._mute:
                    log.warning("cannot say what it does: %s", error)
                self._mute = True
                with contextlib.suppress(OSError):
                    os.utime(self._file)
            if time.monotonic() - self._moved > self._timeout:
                self._stands_still()
            time.sleep(BEAT)
            asleep = time.monotonic() - begun
            if asleep > STOPPED:  # the whole process was: that is no time in which it could have got on
                self._moved += asleep
                self._told += asleep

    def _beat(self) -> None:
        temporary = self._file.with_name(f".{self._file.name}")
        temporary.write_text(json.dumps(vars(self._standing)) + "\n")
        temporary.replace(self._file)

    def _stands_still(self) -> None:
        chain, endless = self._chain()
        endless = endless and all(time.time() - standing.since > self._timeout for _, standing in chain)
        silent = self._polled and time.monotonic() - self._told > self._timeout  # its event loop hangs
        stacks = self._dump_stacks()
        story = "; ".join(standing.describe(role) for role, standing in chain)
        if len(chain) > 1 and not endless and not silent:
            log.warning("no progress for %.0f s: %s; all stacks in %s", self._timeout, story, stacks)
            self._moved = time.monotonic()  # say it again after another such time
            return
        why = "its event loop hangs, " if silent else ""
        # The word by which the supervisor finds a role's last words.
        log.critical("FATAL no progress for %.0f s: %s%s; all stacks in %s", self._timeout, why, story, stacks)
        logging.shutdown()
        os._exit(NO_PROGRESS)

    def _chain(self) -> tuple[list[tuple[str, Standing]], bool]:
        """Who waits for whom, from this role on, as far as there is life; and whether that ends where it began."""
        chain = [(self._role, self._standing)]
        while waits_for := chain[-1][1].waits_for:
            if self._role.startswith(waits_for):
                return chain, True
            partner = self._partner(waits_for)
            if partner is None or partner[0] in (role for role, _ in chain):
                break
            chain.append(partner)
        return chain, False

    def _partner(self, waits_for: str) -> tuple[str, Standing] | None:
        """The first role of this name that is alive."""
        for file in sorted(self._file.parent.glob(f"{waits_for}*")):
            try:
                if time.time() - file.stat().st_mtime < self._partner_timeout:
                    return file.name, Standing(**json.loads(file.read_text()))
            except (OSError, ValueError, TypeError):
                continue
        return None

    def _dump_stacks(self) -> Path:
        path = self._run_dir / "logs" / f"{self._role}.stacks.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        return path


_watchdog: Watchdog | None = None


def start(run_dir: Path, role: str, *, timeout: float, partner_timeout: float) -> None:
    """Starts this process's watchdog: ``timeout`` seconds without progress are too long, and another role that gave no
    sign of life for ``partner_timeout`` seconds is taken for dead."""
    global _watchdog
    _watchdog = Watchdog(run_dir, role, timeout, partner_timeout)
    _watchdog.start()


def progress(phase: str, waits_for: str = "") -> None:
    """Tells that the role got on and is now at ``phase``, perhaps waiting for another role."""
    if _watchdog is not None:
        _watchdog.progress(phase, waits_for)


def poll(phase: str, mark: Any, waits_for: str = "") -> None:
    """To be called about every second by an event loop: the role got on if ``mark`` differs from the last call's.

    Once polled, a loop that polls no more hangs.
    """
    if _watchdog is not None:
        _watchdog.poll(phase, mark, waits_for)


def rest(phase: str) -> None:
    """Tells that no progress is due before the next call: the role serves others, or watches itself."""
    if _watchdog is not None:
        _watchdog.rest(phase)


async def keep_polling(describe: Callable[[], tuple[str, Any, str]]) -> None:
    """Polls (phase, mark, waits_for) of ``describe`` every second until cancelled."""
    while True:
        poll(*describe())
        await asyncio.sleep(BEAT)
