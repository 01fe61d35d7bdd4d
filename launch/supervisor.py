"""Starts a run's roles as processes, restarts those that die, ends all together and leaves none behind."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from intellect_jax.children import describe_exit
from launch import processes
from launch.exit_codes import DONE, FAILED, HOPELESS, START_ME_AGAIN, WRONG_INPUT
from launch.heartbeats import Pulse
from launch.restarts import Death, RestartPolicy
from launch.room import PATIENCE, Room

POLL = 0.1  # seconds between two looks at the processes
SERVICE_GRACE = 10.0  # seconds that a service gets between SIGTERM and SIGKILL


@dataclass(frozen=True)
class RoleSpec:
    """One process. A service runs until it is told to end; the others end by themselves, and with them the run."""

    name: str  # also its log's: <logs>/<name>.log
    argv: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    service: bool = False
    group: str = ""  # roles of the same group live and die together
    policy: RestartPolicy = field(default_factory=RestartPolicy)


@dataclass
class _Role:
    spec: RoleSpec
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0  # monotonic seconds
    pulse: Pulse | None = None  # None: nobody listens
    log_offset: int = 0  # bytes of the log that earlier starts wrote
    restart_at: float | None = None  # monotonic seconds; None: not waiting for a restart
    deaths: list[Death] = field(default_factory=list)
    finished: bool = False

    @property
    def name(self) -> str:
        return self.spec.name


class Supervisor:
    """Runs roles to the end.

    ``say`` gets lines for the person, ``tick`` is called every POLL seconds, ``on_death`` for every unexpected end. The
    first SIGINT, SIGTERM or SIGHUP ends the roles in order: those that do the work one by one in the given order, each
    within ``stop_timeout`` seconds, then the services. The second ends everything now.

    With a folder of ``heartbeats`` each role must write the file of its name there about every second; one that is
    silent for ``heartbeat_timeout`` seconds (stopped, or the machine swaps) is killed, and so started again.

    When a role of a group dies, the others of the group are ended, and all are started again together. While the disk
    of ``logs`` is full nothing is started again, for ``patience`` seconds at most.
    """

    def __init__(
        self,
        specs: list[RoleSpec],
        logs: Path,
        *,
        stop_timeout: float,
        heartbeats: Path | None = None,
        heartbeat_timeout: float = 30.0,
        say: Callable[[str], None] = print,
        tick: Callable[[], None] = lambda: None,
        on_death: Callable[[str, Death], None] = lambda name, death: None,
        patience: float = PATIENCE,
    ):
        self._roles = [_Role(spec, logs / f"{spec.name}.log") for spec in specs]
        self._stop_timeout = stop_timeout
        self._heartbeats, self._heartbeat_timeout = heartbeats, heartbeat_timeout
        self._say = say
        self._tick = tick
        self._on_death = on_death
        self._room = Room(logs.parent, say, patience)
        self._signals = 0

    def run(self) -> int:
        """Returns 0 when every role that ends by itself ended well, 2 when one found the user's input wrong, else 1."""
        with self._handling_signals():
            try:
                for role in self._roles:
                    self._start(role)
                code = self._watch()
                self._end_in_order()
                return code
            finally:
                self._kill_all()

    @contextmanager
    def _handling_signals(self) -> Iterator[None]:
        def count(number: int, frame: FrameType | None) -> None:
            self._signals += 1

        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, count) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _start(self, role: _Role) -> None:
        role.log_offset = role.log.stat().st_size if role.log.exists() else 0
        role.pulse = Pulse(self._heartbeats / role.name, time.monotonic()) if self._heartbeats else None
        role.process = processes.start(role.spec.argv, role.spec.environment, role.log)
        role.started, role.restart_at = time.monotonic(), None

    def _watch(self) -> int:
        """Looks at every role until the work is done, is hopeless, or a signal asks to end."""
        while not all(role.finished for role in self._roles if not role.spec.service):
            if self._signals:
                self._say("Stopping: the step in hand is finished and saved. Ctrl-C again stops at once.")
                return FAILED
            for role in self._roles:
                code = self._look_at(role)
                if code is not None:
                    return code
            self._pause()
        return DONE

    def _pause(self) -> None:
        self._tick()
        time.sleep(POLL)

    def _look_at(self, role: _Role) -> int | None:
        """Handles the end of one role's process; returns the run's exit code when the run has to end."""
        if role.process is not None:
            exit_code = role.process.poll()
            if exit_code is None:
                self._kill_if_silent(role)
                return None
            processes.signal_group(role.process, signal.SIGKILL)  # what it may have left behind
            role.process = None
            if exit_code == 0 and not role.spec.service:
                role.finished = True
                return None
            return self._after_death(role, exit_code)
        now = time.monotonic()
        if role.restart_at is not None and now >= role.restart_at:
            if not self._room.is_there(now):
                return self._give_up(now) if self._room.given_up(now) else None
            self._start(role)
            if not role.spec.service:
                self._start_finished_again()
        return None

    def _kill_if_silent(self, role: _Role) -> None:
        """Its end is seen at one of the next looks, and treated as any other."""
        now = time.monotonic()
        if role.pulse is None or role.pulse.silence(now) < self._heartbeat_timeout:
            return
        self._say(f"{role.name} does not answer {role.pulse.last_words(now)}: it is killed")
        assert role.process is not None
        processes.signal_group(role.process, signal.SIGKILL)
        role.pulse = None

    def _start_finished_again(self) -> None:
        """A role that does the work may wait for a partner that has already ended: that one comes back, too.

        It goes on from its last checkpoint, finds nothing left to do and tells so again.
        """
        for role in self._roles:
            if role.finished:
                role.finished = False
                self._start(role)

    def _after_death(self, role: _Role, exit_code: int) -> int | None:
        """Plans the restart; returns the run's exit code when there is none."""
        now = time.monotonic()
        words = processes.last_words(role.log, role.log_offset)
        role.deaths.append(Death(now, exit_code, now - role.started, words))
        self._on_death(role.name, role.deaths[-1])
        what = f"{role.name} ended with {describe_exit(exit_code)} after {now - role.started:.0f} s"
        if exit_code in (WRONG_INPUT, HOPELESS):
            self._say(f"{what}:\n{words}\nlog: {role.log}")
            return WRONG_INPUT if exit_code == WRONG_INPUT else FAILED
        peers = self._peers(role)
        delay = role.spec.policy.delay(sorted((d for r in (role, *peers) for d in r.deaths), key=lambda d: d.time))
        if delay is None:
            self._say(f"{what}: it does not stay up, so the run ends")
            return self._give_up(now)
        reason = f": {processes.reason(words)[:200]}" if exit_code > 0 and words else ""  # a kill leaves no word
        others = ", ".join(peer.name for peer in peers)
        again = f"; ending {others} and starting all again in " if peers else "; starting it again in "
        self._say(f"{what}{reason}{again}{delay:.1f} s")
        # One that asked for it has saved together with the others, which are about to end by themselves.
        self._end(peers, self._stop_timeout if exit_code == START_ME_AGAIN else 0.0)
        for each in (role, *peers):
            each.process, each.finished, each.restart_at = None, False, now + delay
        return None

    def _peers(self, role: _Role) -> list[_Role]:
        group = role.spec.group
        return [each for each in self._roles if group and each is not role and each.spec.group == group]

    def _give_up(self, now: float) -> int:
        """Shows the first death of the whole episode: later ones are often its consequences."""
        recent = [
            (death, role)
            for role in self._roles
            for death in role.deaths
            if now - death.time <= role.spec.policy.window
        ]
        death, role = min(recent, key=lambda pair: pair[0].time)
        self._say(f"First to die was {role.name}, with {describe_exit(death.exit_code)}:")
        self._say(death.last_words or "(nothing in its log)")
        self._say(f"log: {role.log}")
        return FAILED

    def _end_in_order(self) -> None:
        """Each working role finishes its step and saves, one by one in the given order; then the services end."""
        working = [role for role in self._roles if not role.spec.service]
        for role in working:
            self._end([role, *self._peers(role)], self._stop_timeout)
        self._end([role for role in self._roles if role.spec.service], SERVICE_GRACE)

    def _end(self, roles: list[_Role], timeout: float) -> None:
        """SIGTERM, then SIGKILL to those that are still there after ``timeout`` seconds or a second signal."""
        running = {role.name: role.process for role in roles if role.process is not None}
        for process in running.values():
            process.terminate()
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self._signals < 2:
            running = {name: process for name, process in running.items() if process.poll() is None}
            if not running:
                return
            self._pause()
        for name, process in running.items():
            if self._signals < 2 and timeout:
                self._say(f"{name} did not end within {timeout:.0f} s of SIGTERM and was killed")
            processes.kill_group(process)

    def _kill_all(self) -> None:
        """Nothing of any session we started is left, whatever happened before."""
        alive = [role.process for role in self._roles if role.process is not None]
        for process in alive:
            processes.signal_group(process, signal.SIGKILL)
        for process in alive:
            process.wait(10.0)
