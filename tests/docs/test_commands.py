"""Every command that README and docs/ show, executed: whole where that is cheap, else with nothing started."""

import importlib.metadata
import os
import re
import shlex
import subprocess
import sys
import tomllib

import pytest
import yaml

from launch.__main__ import main
from tests.docs.pages import ROOT, Block, blocks, commands

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
STANDALONE = [block for block in blocks("python") if not block.text.startswith("# envs/")]


@pytest.mark.parametrize(("page", "command"), commands())
def test_command_works(clone, monkeypatch, page, command):
    words = shlex.split(command, comments=True)
    monkeypatch.chdir(clone)
    runner = RUNNERS.get(" ".join(words[:3])) or RUNNERS.get(" ".join(words[:2])) or RUNNERS.get(words[0])
    assert runner, f"{page}: no rule how to try {command!r}"
    runner(words)


@pytest.mark.parametrize("block", STANDALONE, ids=lambda block: f"{block.page}: {block.text.splitlines()[0]}")
def test_python_runs(clone, block: Block):
    run([sys.executable, "-c", block.text], clone)


def test_the_rules_themselves_catch_wrong_commands(clone, monkeypatch):
    monkeypatch.chdir(clone)
    for wrong in (
        "make dmeo",
        "python -m launch --config=configs/debug_cpu.py --config.trainer.step=3",
        "python -m launch --config=configs/nothing.py",
        "python benchmarks/plot_rewards.py a b",
        "pip install 'intellect-jax[nothing]'",
        "source .virtual/bin/activate",
        "ls runs/nothing",
    ):
        words = shlex.split(wrong)
        with pytest.raises(AssertionError):
            (RUNNERS.get(" ".join(words[:3])) or RUNNERS[words[0]])(words)


def launch(words: list[str]) -> None:
    """`export` is cheap and has no --dry_run; everything else starts nothing."""
    words = words[3:]
    if words[0] == "export":
        return run([sys.executable, "-m", "launch", *words])
    assert main([*words, *(["--dry_run"] if "--dry_run" not in words else [])]) == 0, words


def python(words: list[str]) -> None:
    run([sys.executable, *words[1:]])


def make(words: list[str]) -> None:
    run(["make", "-n", *words[1:]])


def pip(words: list[str]) -> None:
    """The extras exist, and what is installed by itself is in one of them. Nothing is fetched."""
    assert words[1] == "install", words
    for package in words[2:]:
        name, extra = re.fullmatch(r"([\w-]+)(?:\[(\w+)\])?", package).groups()
        assert extra in EXTRAS if name == "intellect-jax" else in_an_extra(name), package


def program_of_an_extra(words: list[str]) -> None:
    assert in_an_extra(words[0]), words


def in_an_extra(name: str) -> bool:
    return any(re.match(rf"{name}\b", requirement) for extra in EXTRAS.values() for requirement in extra)


def source(words: list[str]) -> None:
    folder, _, script = words[1].partition("/")
    assert script == "bin/activate" and f"$(call create,{folder})" in (ROOT / "Makefile").read_text(), words


def sbatch(words: list[str]) -> None:
    run(["bash", "-n", str(ROOT / words[-1])])


def kubectl(words: list[str]) -> None:
    """Each container's command is one of ours, with a configuration that is right."""
    documents = list(yaml.safe_load_all((ROOT / words[-1]).read_text()))
    pods = [job["template"]["spec"]["template"]["spec"] for job in documents[-1]["spec"]["replicatedJobs"]]
    containers = [c for pod in pods for c in (*pod["containers"], *pod.get("initContainers", []))]
    assert sorted(c["name"] for c in containers) == ["env", "orchestrator", "sampler", "trainer"]
    for container in containers:
        assert container["command"] == ["python", "-m", "launch"] and container["args"][0] == container["name"]
        here = [re.sub(r"run-\w+-0-\d\.run", "127.0.0.1", argument) for argument in container["args"]]
        flags = [argument for argument in here if "run.root" not in argument and "--config=" not in argument]
        assert main([*flags, "--config=configs/debug_cpu.py", "--config.run.name=cluster", "--dry_run"]) == 0, flags


def run(argv: list[str], folder=None) -> None:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{argv}: {done.stdout[-2000:]}{done.stderr[-2000:]}"


def compare(words: list[str]) -> None:
    """PyTorch or a GPU may not be here, and it takes minutes: tests/oracle and tests/evidence run it small."""
    program = words[1:3] if words[1] == "-m" else words[1:2]
    helped = subprocess.run([sys.executable, *program, "--help"], capture_output=True, text=True, timeout=60)
    assert helped.returncode == 0, helped.stderr
    assert all(word.split("=")[0] in helped.stdout for word in words[1 + len(program) :]), words


RUNNERS = {
    "python -m launch": launch,
    "python benchmarks/trainer_vs_torch.py": compare,
    "python -m evidence.gpu": compare,
    "python": python,
    "make": make,
    "pip": pip,
    "tensorboard": program_of_an_extra,
    "source": source,
    "sbatch": sbatch,
    "kubectl": kubectl,
    "ls": run,
    "tail": run,
}


def test_the_installed_command_is_the_same_program():
    (script,) = importlib.metadata.entry_points(name="intellect-jax", group="console_scripts")
    assert script.load() is main
