"""The batch script, and JAX's own way to find a trainer's processes under Slurm, with `srun` played on this machine."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from evidence.strikes import wait_for
from intellect_jax.monitor.metrics import read_metrics
from launch.addresses import free_ports

ROOT = Path(__file__).parents[2]
STEPS = 2

# Starts the tasks of all nodes here, with the variables that Slurm sets; one that fails ends all.
SRUN = """\
#!{python}
import os, subprocess, sys, time

options, words = {{}}, sys.argv[1:]
while words[0].startswith("--"):
    name, _, value = words.pop(0).partition("=")
    options[name] = value
nodes, each = options["--nodelist"].split(","), int(options["--ntasks-per-node"])
tasks = []
for index in range(len(nodes) * each):
    variables = dict(
        SLURM_STEP_NODELIST=options["--nodelist"],
        SLURM_NTASKS=len(nodes) * each,
        SLURM_PROCID=index,
        SLURM_LOCALID=index % each,
    )
    log = open(options["--output"].replace("%j", os.environ["SLURM_JOB_ID"]).replace("%t", str(index)), "ab")
    environment = os.environ | {{name: str(value) for name, value in variables.items()}}
    tasks.append(subprocess.Popen(words, env=environment, stdout=log, stderr=log))
while any(task.poll() is None for task in tasks) and not any(task.poll() for task in tasks):
    time.sleep(0.1)
for task in tasks:
    task.kill()
sys.exit(max(abs(task.wait()) for task in tasks))
"""
SCONTROL = "#!/bin/sh\necho localhost\necho 127.0.0.1\n"


@pytest.fixture
def cluster(tmp_path):
    """The environment of a batch script: two nodes with two devices each."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN.format(python=sys.executable)), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    return os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
        "SLURM_JOB_ID": str(free_ports(1)[0]),  # JAX makes a port of it
        "SLURM_JOB_NODELIST": "localhost,127.0.0.1",
        "SLURM_GPUS_ON_NODE": "2",
        "SAMPLER_NODES": "1",
        "PORT": str(free_ports(1)[0]),
        "CONFIG": str(ROOT / "configs" / "debug_cpu.py"),
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_under_slurm(tmp_path, cluster):
    flags = {
        "run.root": tmp_path / "runs", "run.name": "job",
        "trainer.max_steps": STEPS, "sft.steps": 2, "sft.decay_steps": 1,
        "sft.data": ROOT / "configs" / "data" / "reverse_text_sloppy.jsonl",
        "orchestrator.batch_size": 16, "orchestrator.group_size": 4, "eval.prompts": 12,
    }  # fmt: skip
    cluster["FLAGS"] = " ".join(f"--config.{name}={value}" for name, value in flags.items())
    script = ["bash", str(ROOT / "launch" / "slurm" / "train.sbatch")]
    with open(tmp_path / "out", "w") as out:
        job = subprocess.Popen(script, cwd=tmp_path, env=cluster, stdout=out, stderr=out, start_new_session=True)
    try:
        wait_for(lambda: job.poll() is not None, "end of the job", 400)
    finally:
        os.killpg(job.pid, signal.SIGKILL)  # as Slurm does with what a job leaves
    logs = {path.name: path.read_text() for path in tmp_path.glob("slurm-*.log")}
    assert job.returncode == 0, (tmp_path / "out").read_text()[-2000:] + str(logs)[-5000:]
    assert sum("process 1 of 2 with 1 of 2 devices" in text for text in logs.values()) == 1
    rows = read_metrics(tmp_path / "runs" / "job")
    assert [row["step"] for row in rows if row["role"] == "trainer"] == list(range(1, STEPS + 1))
