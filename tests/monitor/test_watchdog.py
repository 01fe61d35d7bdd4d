"""The watchdog in real processes: what it says, what it writes, and when it ends the process."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from intellect_jax.monitor import watchdog

PRELUDE = """
import asyncio, logging, pathlib, sys, time
from intellect_jax.monitor import watchdog
watchdog.BEAT, watchdog.STOPPED = 0.05, 0.5
run_dir, role = pathlib.Path(sys.argv[1]), sys.argv[2]
logging.basicConfig(level="INFO")
watchdog.start(run_dir, role, timeout=1.0, partner_timeout=1.0)
"""


@pytest.fixture
def start(tmp_path):
    started = []

    def call(role: str, body: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PRELUDE + body, str(tmp_path), role]
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield call
    for process in started:
        process.kill()
        process.wait()


def ended(process: subprocess.Popen[str], seconds: float = 20.0) -> tuple[int, str]:
    _, err = process.communicate(timeout=seconds)
    return process.returncode, err


def wait_for(condition, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def standing(run_dir: Path, role: str) -> dict:
    try:
        return json.loads((run_dir / "heartbeats" / role).read_text())
    except FileNotFoundError:
        return {}


def test_a_hanging_main_thread_ends_the_process_and_leaves_its_stacks(start, tmp_path):
    code, err = ended(start("trainer", "def hang(): time.sleep(60)\nwatchdog.progress('training batch 7')\nhang()"))
    assert code == watchdog.NO_PROGRESS
    assert "FATAL no progress for 1 s: trainer: training batch 7 since " in err
    assert "in hang" in (tmp_path / "logs" / "trainer.stacks.txt").read_text()


def test_whoever_gets_on_lives(start):
    body = "for i in range(30):\n    watchdog.progress(f'step {i}')\n    time.sleep(0.1)"
    assert ended(start("trainer", body)) == (0, "")


def test_who_serves_others_may_rest(start):
    assert ended(start("env-0", "watchdog.rest('serving calls')\ntime.sleep(2.5)")) == (0, "")


def test_waiting_for_a_live_role_is_only_told(start, tmp_path):
    partner = start("orchestrator", "watchdog.rest('making rollouts')\ntime.sleep(60)")
    waiting = start("trainer", "watchdog.progress('waiting for batch 3', waits_for='orchestrator')\ntime.sleep(60)")
    wait_for(lambda: standing(tmp_path, "trainer").get("phase") == "waiting for batch 3")
    time.sleep(2.5)
    assert waiting.poll() is None
    partner.kill()
    code, err = ended(waiting)
    assert code == watchdog.NO_PROGRESS
    told = [line for line in err.splitlines() if "no progress" in line]
    assert "trainer: waiting for batch 3 (waits for orchestrator) since " in told[0]
    assert "orchestrator: making rollouts since " in told[0] and "FATAL" not in told[0]
    assert "FATAL" in told[-1]


def test_two_that_wait_for_each_other_do_not_wait_for_ever(start):
    first = start("trainer", "watchdog.progress('waiting for a batch', waits_for='orchestrator')\ntime.sleep(60)")
    second = start("orchestrator", "watchdog.progress('waiting for a version', waits_for='trainer')\ntime.sleep(60)")
    wait_for(lambda: watchdog.NO_PROGRESS in (first.poll(), second.poll()))


def test_polling_counts_only_what_changes(start):
    body = "for i in range({n}):\n    watchdog.poll('decoding', {mark})\n    time.sleep(0.1)"
    lives, stands = start("sampler-0", body.format(n=30, mark="i")), start("sampler-1", body.format(n=600, mark="7"))
    assert ended(lives) == (0, "")
    code, err = ended(stands)
    assert code == watchdog.NO_PROGRESS and "sampler-1: decoding since" in err


def test_a_hanging_event_loop_ends_the_process_although_it_waits_for_a_live_role(start, tmp_path):
    start("sampler-0", "watchdog.rest('idle')\ntime.sleep(60)")
    wait_for(lambda: standing(tmp_path, "sampler-0"))
    body = """
async def main():
    polling = asyncio.create_task(watchdog.keep_polling(lambda: ("waiting for rollouts", 0, "sampler")))
    await asyncio.sleep(2.5)
    print("blocks", file=sys.stderr)
    time.sleep(60)
asyncio.run(main())
"""
    code, err = ended(start("orchestrator", body))
    before, after = err.split("blocks")
    assert code == watchdog.NO_PROGRESS
    assert "no progress" in before and "FATAL" not in before
    assert "FATAL no progress for 1 s: its event loop hangs, orchestrator: waiting for rollouts" in after


def test_time_in_which_the_process_was_stopped_does_not_count(start, tmp_path):
    process = start("trainer", "watchdog.progress('step')\nfor _ in range(8): time.sleep(0.1)")
    wait_for(lambda: standing(tmp_path, "trainer").get("phase") == "step")
    process.send_signal(signal.SIGSTOP)
    time.sleep(3.0)
    process.send_signal(signal.SIGCONT)
    assert ended(process) == (0, "")


def test_without_a_watchdog_nothing_happens():
    code = "from intellect_jax.monitor import watchdog as w; w.progress('a'); w.poll('b', 1); w.rest('c')"
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 0
