"""A trainer of several real processes: the same losses as one process, and one end for all."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from evidence.books import complaints, read_books
from evidence.strikes import ROOT, said, steps_done, wait_for
from intellect_jax.monitor.metrics import read_metrics
from launch.addresses import free_ports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SFT_STEPS, RL_STEPS = 5, 3
# The demo, shortened, and alternating so that each step's rollouts depend on nothing but the weights before it.
DEMO = (
    *(f"--config.sft.steps={SFT_STEPS}", "--config.sft.decay_steps=2", f"--config.trainer.max_steps={RL_STEPS}"),
    *("--config.orchestrator.batch_size=16", "--config.orchestrator.group_size=4", "--config.eval.prompts=12"),
    *("--config.orchestrator.max_off_policy_steps=0", "--config.sampler.deterministic=true"),
)
SUPERVISED = ("--config.trainer.max_steps=0", "--config.sft.decay_steps=2", "--config.checkpoint.every=5")
MESH = ("--config.parallel.fsdp=2", "--config.parallel.tensor=2")
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # to compile


def start(run_dir: Path, processes: int, devices: int, *overrides: str, command: tuple[str, ...] = ()):
    """`launch` on the demo with a trainer of ``processes`` times ``devices``; its words go to ``<run_dir>.out``."""
    words = (f"--config.run.root={run_dir.parent}", f"--config.run.name={run_dir.name}")
    shape = (f"--config.distributed.processes={processes}", f"--config.distributed.local_devices={devices}")
    argv = [sys.executable, "-m", "launch", *command, "--config=configs/debug_cpu.py", *words, *shape, *overrides]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICK}
    with open(f"{run_dir}.out", "ab") as out:
        return subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT)


def pid_of(index: int, run_dir: Path) -> int | None:
    """Process ``index`` of a run's trainer."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if {"trainer", f"--index={index}"} <= set(words) and any(str(run_dir) in word for word in words):
            return int(folder.name)
    return None


def at_step(run_dir: Path, step: int) -> None:
    wait_for(lambda: steps_done(run_dir, "sft") >= step, f"step {step}", 200)


def series(run_dir: Path, role: str, name: str) -> list[float]:
    return [row[name] for row in read_metrics(run_dir) if row["role"] == role and name in row]


def finish(process: subprocess.Popen, run_dir: Path, timeout: float = 400) -> None:
    logs = "\n".join(f"{log}:\n{log.read_text()[-1500:]}" for log in (run_dir / "logs").glob("trainer*.log"))
    assert process.wait(timeout) == 0, said(run_dir)[-3000:] + logs


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """The demo on 4 devices of one process."""
    run_dir = tmp_path_factory.mktemp("one") / "run"
    finish(start(run_dir, 1, 4, *DEMO, *MESH), run_dir)
    return run_dir


@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_train_to_the_losses_of_one(one_process, tmp_path, processes):
    """Of four processes with tensor=2, two each hold the same rows."""
    run_dir = tmp_path / "run"
    finish(start(run_dir, processes, 4 // processes, *DEMO, *MESH), run_dir)
    for role, name, steps in [
        ("sft", "loss/ce", SFT_STEPS),
        ("sft", "grad/norm", SFT_STEPS),
        ("trainer", "loss/rl", RL_STEPS),
        ("trainer", "grad/norm", RL_STEPS),
        ("trainer", "policy/entropy", RL_STEPS),
        ("trainer", "tokens/trained", RL_STEPS),
    ]:
        expected = series(one_process, role, name)
        assert len(expected) == steps
        # Advantages of a group add up to 0: what is left of the RL loss is 1e-3 of what was added up.
        error = np.abs(np.subtract(series(run_dir, role, name), expected)) / np.maximum(np.abs(expected), 1e-2)
        assert error.max() <= 1e-5, f"{role} {name}: {error}"
    assert series(run_dir, "trainer", "compile/after_warmup") == [0] * RL_STEPS
    assert max(series(run_dir, "trainer", "mismatch/fresh_max")) <= 1e-4
    assert sorted(log.stem for log in (run_dir / "logs").glob("trainer*.log")) == [
        f"trainer-{index}" for index in range(processes)
    ]
    assert complaints(read_books(run_dir), RL_STEPS) == []


def test_a_killed_process_ends_the_other_with_a_message_within_30_seconds(tmp_path):
    """Each started by hand, as on two hosts: no supervisor does it."""
    run_dir = tmp_path / "run"
    run_dir.parent.mkdir(exist_ok=True)
    meeting = f"--config.distributed.coordinator=127.0.0.1:{free_ports(1)[0]}"
    words = (*SUPERVISED, "--config.sft.steps=100000", meeting)
    pair = [start(run_dir, 2, 1, *words, f"--index={index}", command=("trainer",)) for index in range(2)]
    try:
        at_step(run_dir, 3)
        pair[1].kill()
        killed = time.monotonic()
        assert pair[0].wait(30) == 1
        assert time.monotonic() - killed < 30
        assert re.search(r"FATAL PeerLost: trainer-1 died", said(run_dir)), said(run_dir)[-3000:]
    finally:
        for process in pair:
            process.kill()
            process.wait(10)


def test_a_process_that_dies_or_is_told_to_stop_starts_all_again(tmp_path):
    run_dir, steps = tmp_path / "run", 24
    process = start(run_dir, 2, 1, *SUPERVISED, f"--config.sft.steps={steps}", command=("sft",))
    try:
        for step, index, number in [(7, 1, signal.SIGKILL), (13, 0, signal.SIGTERM)]:
            at_step(run_dir, step)
            os.kill(pid_of(index, run_dir), number)
        finish(process, run_dir)
    finally:
        process.kill()
        process.wait(10)
    done = [row["step"] for row in read_metrics(run_dir) if row["role"] == "sft"]
    assert done[-1] == steps and sorted(set(done)) == list(range(1, steps + 1))
    assert len(done) - steps < 5 + 3, "after a kill from the checkpoint, after SIGTERM from the step in hand"
    assert said(run_dir).count("starting all again") == 2
    assert "trainer-1 ended with signal SIGKILL" in said(run_dir) and "with exit code 70" in said(run_dir)
