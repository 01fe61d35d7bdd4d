"""How a role's process is set up and how it ends. Small modules stand where the roles' own are."""

import os
import subprocess
import sys

import pytest

from intellect_jax import config as schema
from intellect_jax.children import describe_exit
from launch import addresses, preparation, processes, roles


@pytest.fixture
def config():
    config = schema.default_config()
    config.sampler.num_servers = 2
    addresses.choose(config)
    return config


def test_every_process_of_a_run(config, tmp_path):
    specs = roles.specs(config, tmp_path / "config.json", ("trainer", "orchestrator", "sampler", "env"))
    assert [(spec.name, spec.service) for spec in specs] == [
        ("trainer", False), ("orchestrator", False), ("sampler-0", True), ("sampler-1", True), ("env-0", True),
    ]  # fmt: skip
    assert specs[3].argv[-3:] == ["sampler", f"--config={tmp_path / 'config.json'}", "--index=1"]


def test_a_trainer_of_several_processes(config, tmp_path):
    config.distributed.processes, config.distributed.local_devices = 2, 2
    specs = roles.specs(config, tmp_path / "config.json", ("trainer", "orchestrator"))
    assert [(spec.name, spec.group) for spec in specs] == [
        ("trainer-0", "trainer"),
        ("trainer-1", "trainer"),
        ("orchestrator", ""),
    ]
    assert specs[1].argv[-1] == "--index=1" and specs[2].argv[-1] != "--index=1"
    assert [spec.environment.get("JAX_LOCAL_DEVICE_IDS") for spec in specs] == ["0,1", "2,3", None]
    assert [spec.environment.get("JAX_NUM_CPU_DEVICES") for spec in specs] == ["2", "2", None]


def test_trainer_processes_get_a_place_to_meet():
    config = schema.default_config()
    addresses.choose(config)
    assert (config.distributed.processes, config.distributed.coordinator) == (1, "")
    config.distributed.processes = 2
    addresses.choose(config)
    assert config.distributed.coordinator.startswith("127.0.0.1:")
    assert "distributed.coordinator" in config.launch.chosen


def test_a_fleet_that_the_user_named_is_not_started(config, tmp_path):
    config.launch.chosen = ()
    assert roles.specs(config, tmp_path, ("sampler",)) == []


def test_platform_and_threads_reach_the_process(config):
    config.trainer.platform = "cuda"
    config.launch.threads = 2
    assert roles.environment(config, "trainer")["JAX_PLATFORMS"] == "cuda"
    assert "JAX_PLATFORMS" not in roles.environment(config, "sampler")
    assert roles.environment(config, "env")["JAX_PLATFORMS"] == "cpu"
    assert roles.environment(config, "sampler")["NPROC"] == "2"


@pytest.mark.parametrize(
    "body, code, words",
    [
        ("return 0", 0, None),
        ("raise UserError('data.jsonl:3: no prompt')", 2, "FATAL data.jsonl:3: no prompt"),
        ("raise Hopeless('they differ')", 3, "FATAL they differ"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
    ],
)
def test_how_a_role_ends(tmp_path, body, code, words):
    (tmp_path / "a_role.py").write_text(
        f"from intellect_jax.errors import Hopeless, UserError\ndef main(config, run_dir, index):\n    {body}\n"
    )
    program = (
        "import sys; from pathlib import Path; from launch import roles\n"
        "from intellect_jax.config import default_config\n"
        "roles.ENTRY_POINTS['trainer'] = 'a_role'\n"
        f"sys.exit(roles.run('trainer', default_config(), Path({str(tmp_path)!r}), 0))"
    )
    log = tmp_path / "trainer.log"
    path = os.pathsep.join([str(tmp_path), os.getcwd()])
    process = processes.start([sys.executable, "-c", program], {"PYTHONPATH": path}, log)
    assert process.wait(30) == code
    if words:
        last = processes.last_words(log, 0)
        assert words in last
        assert processes.reason(last) == words.removeprefix("FATAL ")
        assert ("Traceback" in last) == (code == 1)


def test_last_words_are_of_this_start_only(tmp_path):
    log = tmp_path / "role.log"
    log.write_text("x FATAL old\n")
    offset = log.stat().st_size
    with log.open("a") as file:
        file.write(
            "Traceback (most recent call last):\n  retried\nfine\nTraceback (most recent call last):\n  real\nBoom\n"
        )
    assert processes.last_words(log, offset) == "Traceback (most recent call last):\n  real\nBoom"
    assert processes.last_words(log, log.stat().st_size) == ""
    log.write_text("12:00 trainer: FATAL it ended\nfrom its child: a warning\n")  # in a group they share the log
    assert processes.reason(processes.last_words(log, 0)) == "it ended"


def test_last_words_of_a_process_whose_peer_is_gone(tmp_path):
    log = tmp_path / "trainer-0.log"
    log.write_text(f"compiled\nF1122 client.h:80] {processes.LOST}. RPC\nthe tasks 1\nThread 0x1:\n  wait\n")
    assert processes.last_words(log, 0).splitlines()[1] == "the tasks 1"


def test_describe_exit():
    assert describe_exit(3) == "exit code 3"
    assert describe_exit(subprocess.run(["sh", "-c", "kill -9 $$"]).returncode) == "signal SIGKILL"


def test_the_tokenizer_is_prepared_once(config, tmp_path):
    preparation.prepare_tokenizer(config, tmp_path)
    stamp = (tmp_path / "tokenizer" / "tokenizer.json").stat().st_mtime_ns
    preparation.prepare_tokenizer(config, tmp_path)
    assert (tmp_path / "tokenizer" / "tokenizer.json").stat().st_mtime_ns == stamp
    config.tokenizer.path = str(tmp_path / "tokenizer")
    preparation.prepare_tokenizer(config, tmp_path / "other")
    names = [
        sorted(path.name for path in (folder / "tokenizer").iterdir()) for folder in (tmp_path, tmp_path / "other")
    ]
    assert names[0] == names[1]
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["tokenizer"]
