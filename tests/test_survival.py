"""kill -9, SIGSTOP and damaged files on the real system: the run goes on, trains nothing twice, loses nothing."""

import json
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from evidence.books import complaints, read_books
from evidence.strikes import ROLES, ROOT, pid_of, said, start, steps_done, strike, wait_for
from intellect_jax.monitor.metrics import read_metrics
from intellect_jax.monitor.summary import surviving
from intellect_jax.transport.weights import WeightStore
from tests.disks import fill, small_disk

__all__ = ["small_disk"]

# Those that are slow as well run in `make test-all` too.
pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]

STEPS = 12
KILLS = 5
TIMEOUT = 600
SMALL = (
    *(f"--config.trainer.max_steps={STEPS}", "--config.checkpoint.every=3", "--config.sft.steps=25"),
    *("--config.sft.decay_steps=5", "--config.eval.prompts=12"),
    *("--config.orchestrator.batch_size=16", "--config.orchestrator.group_size=4"),
)


@pytest.fixture
def begin():
    """Starts runs; none outlives its test, for the roles die with their supervisor."""
    processes = []

    def begin(run_dir, *overrides, **recipe):
        processes.append(start(run_dir, *overrides, **recipe))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.wait(10)


def moments(name):
    return sorted(random.Random(name).sample(range(1, STEPS), KILLS))


def at_step(run_dir, step):
    wait_for(lambda: steps_done(run_dir) >= step, f"step {step}", TIMEOUT)


def finish(process, run_dir):
    """Waits for the end of a run and for sound books."""
    assert process.wait(TIMEOUT) == 0, said(run_dir)[-3000:]
    assert complaints(read_books(run_dir), STEPS) == []
    return json.loads((run_dir / "summary.json").read_text())


@pytest.mark.parametrize("role", [pytest.param(r, marks=pytest.mark.slow) if r == "trainer" else r for r in ROLES])
def test_a_killed_role_costs_no_task_and_no_step(role, tmp_path, begin):
    run_dir = tmp_path / "run"
    process = begin(run_dir, *SMALL)
    for moment in moments(role):
        at_step(run_dir, moment)
        strike(role, run_dir, signal.SIGKILL)
        time.sleep(1)
    assert finish(process, run_dir)["process_deaths"] >= KILLS


@pytest.mark.slow
def test_a_disk_that_fills_costs_no_task_and_no_step(small_disk, begin):
    run_dir = small_disk / "run"
    process = begin(run_dir, *SMALL)
    at_step(run_dir, 4)
    filling = fill(small_disk)
    time.sleep(20)
    done = steps_done(run_dir)
    filling.unlink()
    summary = finish(process, run_dir)
    logs = "".join((run_dir / "logs" / f"{role}.log").read_text() for role in ("trainer", "orchestrator"))
    assert done < STEPS and "room on the disk" in said(run_dir) + logs, summary


def test_a_killed_supervisor_leaves_nothing_behind_and_the_same_command_goes_on(tmp_path, begin):
    run_dir = tmp_path / "run"
    process = begin(run_dir, *SMALL)
    for moment in moments("supervisor"):
        at_step(run_dir, moment)
        process.kill()
        process.wait(10)
        wait_for(lambda: not any(pid_of(role, run_dir) for role in ROLES), "end of the roles", 20)
        process = begin(run_dir, *SMALL)
    finish(process, run_dir)


def test_ctrl_c_saves_the_step_in_hand_and_the_same_command_goes_on(tmp_path, begin):
    run_dir = tmp_path / "run"
    for moment in (1, 5):
        process = begin(run_dir, *SMALL)
        at_step(run_dir, moment)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 1 and "finished and saved" in said(run_dir)
        assert not any(pid_of(role, run_dir) for role in ROLES)
        saved = max(int(path.name) for path in (run_dir / "checkpoints").iterdir())
        assert saved == steps_done(run_dir) < STEPS, "every step that was logged is saved"
    process = begin(run_dir, *SMALL)
    finish(process, run_dir)
    assert [row["step"] for row in read_metrics(run_dir) if row["role"] == "trainer"] == list(range(1, STEPS + 1))


def test_a_synchronous_run_killed_and_resumed_equals_the_unbroken_one_bit_for_bit(tmp_path, begin):
    sync = (*SMALL, "--config.orchestrator.max_off_policy_steps=0", "--config.sampler.deterministic=True")
    runs = [tmp_path / "unbroken", tmp_path / "broken"]
    finish(begin(runs[0], *sync), runs[0])
    process = begin(runs[1], *sync)
    for moment in moments("bit for bit"):
        at_step(runs[1], moment)
        strike("trainer", runs[1], signal.SIGKILL)
        time.sleep(1)
    finish(process, runs[1])
    losses = [[row["loss/total"] for row in surviving(read_metrics(run), "trainer")] for run in runs]
    assert losses[0] == losses[1] and len(losses[0]) == STEPS
    unbroken, broken = map(newest_weights, runs)
    for name, tensor in unbroken.items():
        np.testing.assert_array_equal(broken[name], tensor, err_msg=name)


def newest_weights(run_dir):
    store = WeightStore(run_dir / "weights")
    version = store.latest()
    assert version.number == STEPS
    return store.read(store.manifest_path(version))


def test_a_sampler_that_freezes_is_named_and_started_again(tmp_path, begin):
    run_dir = tmp_path / "run"
    process = begin(run_dir, *SMALL, "--config.launch.heartbeat_timeout=10")
    at_step(run_dir, 3)
    strike("sampler", run_dir, signal.SIGSTOP)
    frozen = time.time()
    finish(process, run_dir)
    told = re.search(r"sampler-0 does not answer since (\d\d:\d\d:\d\d), while \S.*: it is killed", said(run_dir))
    assert told, said(run_dir)[-3000:]
    assert told[1] in {time.strftime("%H:%M:%S", time.localtime(frozen + s)) for s in (-2, -1, 0, 1)}


def test_a_sampler_joins_a_run_works_for_it_and_is_killed(tmp_path, begin):
    run_dir = tmp_path / "run"
    log, endless = run_dir / "logs" / "orchestrator.log", "--config.trainer.max_steps=2000"
    process = begin(run_dir, *SMALL, endless)
    wait_for(log.exists, "start", TIMEOUT)
    joined = subprocess.Popen([sys.executable, "-m", "launch", "sampler", f"--join={run_dir}"], cwd=ROOT)
    try:
        wait_for(lambda: "joined the fleet" in log.read_text(), "word of the one that joined", TIMEOUT)
        wait_for(lambda: highest("tokens/generated", "sampler-100", run_dir) > 200, "tokens that it made", TIMEOUT)
        wait_for(lambda: highest("fleet/healthy", "orchestrator", run_dir) == 2, "a batch of two samplers", TIMEOUT)
    finally:
        joined.kill()
        joined.wait(10)
    wait_for(lambda: "left the fleet" in log.read_text(), "word of the one that left", 20)
    at_step(run_dir, steps_done(run_dir) + 3)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 1, said(run_dir)[-3000:]
    steps = steps_done(run_dir) + 2
    process = begin(run_dir, *SMALL, f"--config.trainer.max_steps={steps}")
    assert process.wait(TIMEOUT) == 0, said(run_dir)[-3000:]
    assert complaints(read_books(run_dir), steps) == []
    assert not [row for row in read_metrics(run_dir) if row.get("rollouts/dropped_error")]


def highest(name, role, run_dir):
    """Of a metric's values in a role's rows."""
    return max((row.get(name, 0) for row in read_metrics(run_dir) if row["role"] == role), default=0)


@pytest.mark.slow
def test_a_damaged_version_is_published_again_and_a_damaged_checkpoint_passed_over(tmp_path, begin):
    run_dir = tmp_path / "run"
    process = begin(run_dir, *SMALL)
    at_step(run_dir, 4)
    sampler = wait_for(lambda: pid_of("sampler", run_dir), "sampler", 60)
    strike("sampler", run_dir, signal.SIGSTOP)
    time.sleep(5)  # until the trainer has used up its batches and waits
    newest = WeightStore(run_dir / "weights").latest()
    damage(next((run_dir / "weights" / f"v{newest.lineage}-{newest.number}").glob("*.safetensors")))
    strike("sampler", run_dir, signal.SIGKILL)  # its successor has to read the damaged one
    wait_for(lambda: pid_of("sampler", run_dir) not in (None, sampler), "new sampler", 60)
    at_step(run_dir, 8)
    strike("trainer", run_dir, signal.SIGKILL)
    saved = sorted(int(path.name) for path in (run_dir / "checkpoints").iterdir() if path.name.isdecimal())
    files = (run_dir / "checkpoints" / str(saved[-1]) / "state").rglob("*")
    damage(max(files, key=lambda path: path.stat().st_size))  # before its successor has compiled
    finish(process, run_dir)
    log = (run_dir / "logs" / "trainer.log").read_text()
    assert f"version {newest} cannot be read: it is published again" in log
    assert f"checkpoint {saved[-1]} is damaged and skipped" in log and f"resuming after step {saved[-2]}" in log


def damage(path):
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


HANGING = """
import pathlib
import time

import reverse_text

class Hanging(reverse_text.ReverseText):
    async def score(self, state):
        hung = pathlib.Path("{marker}")
        if state["split"] == "train" and state["index"] % 5 == 0 and not hung.exists():
            hung.touch()
            while True:
                time.sleep(1)
        return await super().score(state)

def load_environment(**arguments):
    made = reverse_text.load_environment(**arguments)
    made.__class__ = Hanging
    return made
"""

HANGING_RECIPE = """
from configs.debug_cpu import get_config as demo
from intellect_jax.config import env

def get_config():
    config = demo()
    config.envs = (env("hanging", min_length=8, max_length=14),)
    return config
"""


def test_a_reward_that_never_returns_costs_one_rollout(tmp_path, monkeypatch, begin):
    run_dir = tmp_path / "run"
    (tmp_path / "hanging.py").write_text(HANGING.format(marker=tmp_path / "hung"))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT / 'envs' / 'reverse_text'}:{ROOT}")
    recipe = tmp_path / "recipe.py"
    recipe.write_text(HANGING_RECIPE)
    process = begin(run_dir, *SMALL, "--config.environments.timeout=3", config=str(recipe))
    finish(process, run_dir)
    assert (tmp_path / "hung").exists()
    rows = [row for row in read_metrics(run_dir) if row["role"] == "orchestrator"]
    assert sum(row.get("rollouts/dropped_error", 0) for row in rows) == 1
