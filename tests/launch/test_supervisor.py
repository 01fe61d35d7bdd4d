"""The supervisor with real processes: small Python programs instead of the roles, nothing else replaced."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from launch.supervisor import RoleSpec, Supervisor
from tests.disks import small_disk

__all__ = ["small_disk"]

SERVICE = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def end(*_):
    (folder / "service-ended").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
with open(folder / "service-pids", "a") as file:
    print(os.getpid(), file=file)
time.sleep(60)
"""
# Says that it is there, and on SIGTERM takes note of when it was asked to end, saves, and ends.
SAVING = """
import os, pathlib, signal, sys, time
folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
def end(*_):
    time.sleep(0.3)
    (folder / f"{name}-saved").write_text(str(time.monotonic()))
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
(folder / f"{name}-pid").write_text(str(os.getpid()))
time.sleep(60)
"""
STUBBORN = SAVING.replace("signal.signal(signal.SIGTERM, end)", "signal.signal(signal.SIGTERM, signal.SIG_IGN)")


def role(name: str, code: str, *arguments: object, service: bool = False, group: str = "") -> RoleSpec:
    argv = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return RoleSpec(name, argv, service=service, group=group)


def supervise(specs: list[RoleSpec], folder: Path) -> tuple[int, str]:
    """(exit code, everything it said)."""
    said: list[str] = []
    code = Supervisor(specs, folder / "logs", stop_timeout=5.0, say=said.append).run()
    return code, "\n".join(said)


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead but not yet reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_ends_services_when_the_work_is_done(tmp_path):
    work = "import pathlib, sys, time\nwhile not pathlib.Path(sys.argv[1], 'service-pids').exists(): time.sleep(0.02)"
    code, _ = supervise([role("work", work, tmp_path), role("service", SERVICE, tmp_path, service=True)], tmp_path)
    assert code == 0
    assert (tmp_path / "service-ended").exists()


def test_restarts_a_killed_service(tmp_path):
    killer = """
        import os, pathlib, signal, sys, time
        pids = pathlib.Path(sys.argv[1], "service-pids")
        for kills in range(1, 3):
            while not pids.exists() or len(pids.read_text().split()) < kills: time.sleep(0.02)
            os.kill(int(pids.read_text().split()[-1]), signal.SIGKILL)
        while len(pids.read_text().split()) < 3: time.sleep(0.02)
    """
    code, said = supervise([role("work", killer, tmp_path), role("service", SERVICE, tmp_path, service=True)], tmp_path)
    assert code == 0
    assert said.count("service ended with signal SIGKILL") == 2
    assert len((tmp_path / "service-pids").read_text().split()) == 3


def test_restarts_a_worker_that_was_killed(tmp_path):
    dies_twice = """
        import os, pathlib, signal, sys
        tries = pathlib.Path(sys.argv[1], "tries")
        with open(tries, "a") as file: file.write("x")
        if len(tries.read_text()) < 3: os.kill(os.getpid(), signal.SIGKILL)
    """
    code, _ = supervise([role("trainer", dies_twice, tmp_path)], tmp_path)
    assert code == 0
    assert (tmp_path / "tries").read_text() == "xxx"


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "sys.exit(70)"])
def test_a_group_lives_and_dies_together(tmp_path, end):
    """The first of two ends once, while the other runs, or has already ended well."""
    member = f"""
        import os, pathlib, signal, sys, time
        mine, folder = sys.argv[1], pathlib.Path(sys.argv[2])
        with open(folder / mine, "a") as file: file.write("x")
        starts = lambda name: len((folder / name).read_text()) if (folder / name).exists() else 0
        while starts("one") != starts("two"): time.sleep(0.02)
        time.sleep(0.3)
        if mine == "one" and starts("one") == 1: {end}
        if mine == "two" and starts("two") == 1: sys.exit(0) if {"exit" in end} else time.sleep(60)
    """
    specs = [role(name, member, name, tmp_path, group="trainer") for name in ("one", "two")]
    code, said = supervise([*specs, role("other", "import time; time.sleep(2)")], tmp_path)
    assert code == 0, said
    assert (tmp_path / "one").read_text() == (tmp_path / "two").read_text() == "xx"
    assert "ending two and starting all again" in said


def test_a_finished_partner_comes_back_when_the_other_has_died(tmp_path):
    """The second role dies after the first has ended, and then needs to hear from it again."""
    first = """
        import pathlib, sys
        with open(pathlib.Path(sys.argv[1], "first"), "a") as file: file.write("x")
    """
    second = """
        import os, pathlib, signal, sys, time
        ends, tries = pathlib.Path(sys.argv[1], "first"), pathlib.Path(sys.argv[1], "second")
        with open(tries, "a") as file: file.write("x")
        while not ends.exists() or len(ends.read_text()) < len(tries.read_text()): time.sleep(0.02)
        time.sleep(0.5)  # so that the first is seen to have ended
        if len(tries.read_text()) < 2: os.kill(os.getpid(), signal.SIGKILL)
    """
    code, _ = supervise([role("trainer", first, tmp_path), role("orchestrator", second, tmp_path)], tmp_path)
    assert code == 0
    assert (tmp_path / "first").read_text() == (tmp_path / "second").read_text() == "xx"


def test_gives_up_on_a_crash_loop_with_the_first_error(tmp_path):
    crashes = """
        import pathlib, sys
        tries = pathlib.Path(sys.argv[1], "tries")
        with open(tries, "a") as file: file.write("x")
        raise ValueError(f"try {len(tries.read_text())}")
    """
    specs = [role("trainer", crashes, tmp_path), role("service", SERVICE, tmp_path, service=True)]
    code, said = supervise(specs, tmp_path)
    assert code == 1
    assert (tmp_path / "tries").read_text() == "xxx"
    after = said.partition("First to die was trainer")[2]
    assert "Traceback (most recent call last)" in after and "ValueError: try 1" in after
    assert "try 2" not in after
    assert not alive(int((tmp_path / "service-pids").read_text().split()[-1]))


def test_wrong_input_ends_the_run_without_a_second_try(tmp_path):
    wrong = "import sys; print('trainer: FATAL data.jsonl:3: no prompt'); sys.exit(2)"
    code, said = supervise([role("trainer", wrong)], tmp_path)
    assert code == 2
    assert "data.jsonl:3: no prompt" in said and "again" not in said


def test_a_fault_that_would_come_again_ends_the_run_without_a_second_try(tmp_path):
    hopeless = "import sys; print('x trainer: FATAL they differ\\nsuspects: two'); sys.exit(3)"
    code, said = supervise([role("trainer", hopeless)], tmp_path)
    assert code == 1
    assert "they differ\nsuspects: two" in said and "again" not in said


def test_an_end_on_purpose_is_no_crash(tmp_path):
    """A worker that got stuck ends itself with 70, however often."""
    stuck = """
        import pathlib, sys
        tries = pathlib.Path(sys.argv[1], "tries")
        with open(tries, "a") as file: file.write("x")
        sys.exit(70 if len(tries.read_text()) < 5 else 0)
    """
    code, _ = supervise([role("worker", stuck, tmp_path)], tmp_path)
    assert code == 0


# Beats, and the first time stops itself or hangs in its main thread.
SILENT_ONCE = """
import os, pathlib, signal, sys, time
from intellect_jax.monitor import watchdog
run_dir, fault = pathlib.Path(sys.argv[1]), sys.argv[2]
with open(run_dir / "tries", "a") as file: file.write("x")
watchdog.start(run_dir, "sampler-0", timeout=1.0, partner_timeout=1.0)
watchdog.progress("decoding")
if (run_dir / "tries").read_text() == "x":
    time.sleep(1.5 if fault == "stops" else 60)
    os.kill(os.getpid(), signal.SIGSTOP)
"""


def supervise_silent(tmp_path: Path, code: str, *arguments: object) -> tuple[int, str]:
    said: list[str] = []
    beats = {"heartbeats": tmp_path / "heartbeats", "heartbeat_timeout": 3.0}
    specs = [role("sampler-0", code, tmp_path, *arguments)]
    code = Supervisor(specs, tmp_path / "logs", stop_timeout=5.0, say=said.append, **beats).run()
    return code, "\n".join(said)


def test_a_stopped_role_is_named_killed_and_started_again(tmp_path):
    code, said = supervise_silent(tmp_path, SILENT_ONCE.replace("timeout=1.0", "timeout=60.0"), "stops")
    assert code == 0 and (tmp_path / "tries").read_text() == "xx"
    assert re.search(r"^sampler-0 does not answer since \d\d:\d\d:\d\d, while decoding: it is killed$", said, re.M)
    assert "sampler-0 ended with signal SIGKILL" in said and said.count("starting it again") == 1


def test_a_role_whose_main_thread_hangs_is_started_again(tmp_path):
    code, said = supervise_silent(tmp_path, SILENT_ONCE, "hangs")
    assert code == 0 and (tmp_path / "tries").read_text() == "xx"
    assert "sampler-0 ended with exit code 71" in said and "no progress for 1 s: sampler-0: decoding since" in said
    assert "does not answer" not in said


def test_a_role_that_never_gives_a_sign_of_life_is_killed(tmp_path):
    mute_once = """
        import pathlib, sys, time
        tries = pathlib.Path(sys.argv[1], "tries")
        with open(tries, "a") as file: file.write("x")
        time.sleep(60 if len(tries.read_text()) < 2 else 0)
    """
    code, said = supervise_silent(tmp_path, mute_once)
    assert code == 0 and "sampler-0 does not answer since its start at" in said


def test_kills_what_a_role_left_behind(tmp_path):
    leaves_child = """
        import pathlib, subprocess, sys
        child = subprocess.Popen(["sleep", "60"])
        pathlib.Path(sys.argv[1], "child").write_text(str(child.pid))
    """
    code, _ = supervise([role("trainer", leaves_child, tmp_path)], tmp_path)
    assert code == 0
    wait_for(lambda: not alive(int((tmp_path / "child").read_text())))


FILLS_ONCE = """
    import pathlib, sys
    folder = pathlib.Path(sys.argv[1])
    with open(folder / "tries", "a") as file: file.write("x")
    if len((folder / "tries").read_text()) == 1:
        with open(folder / "filling", "wb", buffering=0) as file:
            while True: file.write(bytes(1 << 16))
"""


def test_nothing_starts_again_before_a_full_disk_has_room(small_disk):
    def make_room():
        wait_for(lambda: "is full" in "".join(said))
        time.sleep(1)
        (small_disk / "filling").unlink()

    said: list[str] = []
    helper = threading.Thread(target=make_room)
    helper.start()
    specs = [role("trainer", FILLS_ONCE, small_disk)]
    assert Supervisor(specs, small_disk / "logs", stop_timeout=5.0, say=said.append).run() == 0
    helper.join(10)
    assert (small_disk / "tries").read_text() == "xx"
    full, again = (next(i for i, line in enumerate(said) if what in line) for what in ("is full, 0 MiB", "room on the"))
    assert full < again and sum("the disk of" in line.lower() for line in said) == 2, said


def test_a_disk_that_stays_full_ends_the_run_with_the_first_cause(small_disk):
    said: list[str] = []
    specs = [role("trainer", FILLS_ONCE, small_disk)]
    assert Supervisor(specs, small_disk / "logs", stop_timeout=5.0, say=said.append, patience=1.0).run() == 1
    assert (small_disk / "tries").read_text() == "x"
    assert "First to die was trainer" in "".join(said) and "ends in 1 s unless there is room" in "".join(said)


@pytest.fixture
def supervising(tmp_path):
    """Starts a supervisor of its own process over a trainer, an orchestrator and a service; yields a starter."""
    started: list[subprocess.Popen] = []

    def start(trainer: str) -> subprocess.Popen:
        specs = [
            role("trainer", trainer, tmp_path, "trainer"),
            role("orchestrator", SAVING, tmp_path, "orchestrator"),
            role("service", SERVICE, tmp_path, service=True),
        ]
        roles = [(spec.name, spec.argv, spec.service) for spec in specs]
        program = f"""
            import pathlib, sys
            from launch.supervisor import RoleSpec, Supervisor
            specs = [RoleSpec(name, argv, service=service) for name, argv, service in {roles!r}]
            sys.exit(Supervisor(specs, pathlib.Path({str(tmp_path / "logs")!r}), stop_timeout=20.0).run())
        """
        started.append(subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], start_new_session=True))
        wait_for(lambda: (tmp_path / "trainer-pid").exists() and (tmp_path / "orchestrator-pid").exists())
        wait_for(lambda: (tmp_path / "service-pids").exists() and (tmp_path / "service-pids").read_text().strip())
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def role_pids(folder: Path) -> list[int]:
    return [int((folder / name).read_text()) for name in ("trainer-pid", "orchestrator-pid", "service-pids")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_the_roles_in_order(supervising, tmp_path, number):
    process = supervising(SAVING)
    os.kill(process.pid, number)
    assert process.wait(10) == 1
    trainer, orchestrator = (float((tmp_path / f"{name}-saved").read_text()) for name in ("trainer", "orchestrator"))
    assert orchestrator > trainer + 0.25  # asked only after the trainer had saved
    assert (tmp_path / "service-ended").exists()
    assert not any(map(alive, role_pids(tmp_path)))


def test_a_second_signal_ends_everything_at_once(supervising, tmp_path):
    process = supervising(STUBBORN)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    begun = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(10) == 1
    assert time.monotonic() - begun < 2.0  # far below the 20 s that the trainer was given
    assert not any(map(alive, role_pids(tmp_path)))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs the kernel's parent-death signal")
def test_no_orphan_is_left_by_a_killed_supervisor(supervising, tmp_path):
    process = supervising(STUBBORN)
    process.kill()
    process.wait()
    wait_for(lambda: not any(map(alive, role_pids(tmp_path))), seconds=3.0)
