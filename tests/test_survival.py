"""kill -9 and SIGSTOP on the real system: the run goes on, trains nothing twice, loses nothing."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from intellect_jax.monitor.metrics import read_metrics
from intellect_jax.monitor.summary import surviving
from intellect_jax.orchestrator.outcomes import Outcomes
from intellect_jax.transport.weights import WeightStore

pytestmark = pytest.mark.soak

ROOT = Path(__file__).parents[1]
STEPS = 12
TIMEOUT = 600


def command(root, name, *overrides):
    return [
        *(sys.executable, "-m", "launch", "--config=configs/debug_cpu.py", f"--config.run.root={root}"),
        *(f"--config.run.name={name}", f"--config.trainer.max_steps={STEPS}", "--config.checkpoint.every=3"),
        *("--config.sft.steps=25", "--config.sft.decay_steps=5", "--config.eval.prompts=12"),
        *("--config.orchestrator.batch_size=16", "--config.orchestrator.group_size=4", *overrides),
    ]


def start(root, name, *overrides):
    return subprocess.Popen(command(root, name, *overrides), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process):
    out, _ = process.communicate(timeout=TIMEOUT)
    return process.returncode, out.decode()


def pid_of(role, run_dir):
    """The process of a role of this run, or None."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if role.encode() in words and any(str(run_dir).encode() in word for word in words):
            return int(folder.name)
    return None


def wait_for(condition, what, timeout=TIMEOUT):
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"no {what} within {timeout} s"
        time.sleep(0.05)
    return value


def steps_done(run_dir):
    return max((r["step"] for r in read_metrics(run_dir) if r["role"] == "trainer"), default=0)


def strike(role, run_dir, step, number=signal.SIGKILL):
    """Sends a signal to a role as soon as the trainer has done ``step`` steps."""
    wait_for(lambda: run_dir.exists() and steps_done(run_dir) >= step, f"step {step}")
    os.kill(wait_for(lambda: pid_of(role, run_dir), role), number)


def check_books(run_dir):
    """Every dispatched task has an outcome; those of the surviving batches were trained, each once."""
    ledger = json.loads((run_dir / "ledger.json").read_text())
    outcomes = Outcomes.decode(ledger["outcomes"])
    assert len(outcomes) == sum(ledger["picked"].values())
    assert len(outcomes.of("running")) == len(ledger["unfinished"])
    assert len(outcomes.of("trained")) == STEPS * 4
    assert not outcomes.of("error")
    steps = surviving(read_metrics(run_dir), "trainer")
    assert [row["step"] for row in steps] == list(range(1, STEPS + 1))


@pytest.mark.parametrize("role", ["trainer", "orchestrator", "sampler", "env"])
def test_a_killed_role_costs_no_task_and_no_step(role, tmp_path):
    moments = sorted(random.Random(role).sample(range(1, STEPS), 5))
    run_dir = tmp_path / "run"
    process = start(tmp_path, "run")
    for moment in moments:
        strike(role, run_dir, moment)
        time.sleep(1)
    code, out = finish(process)
    assert code == 0, out[-3000:]
    assert json.loads((run_dir / "summary.json").read_text())["process_deaths"] >= 5
    check_books(run_dir)


def test_a_killed_supervisor_leaves_nothing_behind_and_the_same_command_goes_on(tmp_path):
    run_dir = tmp_path / "run"
    process = start(tmp_path, "run")
    wait_for(lambda: run_dir.exists() and steps_done(run_dir) >= 5, "step 5")
    process.kill()
    process.wait(10)
    roles = ("trainer", "orchestrator", "sampler", "env")
    wait_for(lambda: not any(pid_of(role, run_dir) for role in roles), "end of the roles", 20)
    code, out = finish(start(tmp_path, "run"))
    assert code == 0, out[-3000:]
    check_books(run_dir)


def test_a_synchronous_run_killed_and_resumed_equals_the_unbroken_one_bit_for_bit(tmp_path):
    sync = ("--config.orchestrator.max_off_policy_steps=0", "--config.sampler.deterministic=True")
    code, out = finish(start(tmp_path, "unbroken", *sync))
    assert code == 0, out[-3000:]
    process = start(tmp_path, "broken", *sync)
    for moment in sorted(random.Random(0).sample(range(1, STEPS), 5)):
        strike("trainer", tmp_path / "broken", moment)
        time.sleep(1)
    code, out = finish(process)
    assert code == 0, out[-3000:]
    unbroken, broken = (newest_weights(tmp_path / name) for name in ("unbroken", "broken"))
    losses = [
        [r["loss/total"] for r in surviving(read_metrics(tmp_path / n), "trainer")] for n in ("unbroken", "broken")
    ]
    assert losses[0] == losses[1]
    for name, tensor in unbroken.items():
        np.testing.assert_array_equal(broken[name], tensor, err_msg=name)


def newest_weights(run_dir):
    store = WeightStore(run_dir / "weights")
    version = store.latest()
    assert version.number == STEPS
    return store.read(store.manifest_path(version))


def test_a_sampler_that_freezes_is_named_and_started_again(tmp_path):
    run_dir = tmp_path / "run"
    process = start(tmp_path, "run", "--config.launch.heartbeat_timeout=10")
    strike("sampler", run_dir, 3, signal.SIGSTOP)
    code, out = finish(process)
    assert code == 0, out[-3000:]
    assert "sampler-0" in out and "10 s" in out
    check_books(run_dir)
