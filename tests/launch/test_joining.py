"""``launch sampler --join``: mistakes in one line, and a real process that joins a run directory and leaves it."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from intellect_jax import membership
from intellect_jax.bridge.tokenizer import write_character_tokenizer
from intellect_jax.config import env, to_plain
from intellect_jax.membership import Member
from launch.__main__ import main
from tests.samplers import sampler_config


@pytest.fixture
def run_dir(tmp_path):
    """What a run has left in its directory once its roles have started."""
    config = sampler_config(prefill_buckets=(256,), prefill_rows=1)
    config.model.update({"hidden_size": 32, "num_hidden_layers": 2, "n_routed_experts": 4})
    config.run.update({"root": str(tmp_path), "name": "a_run"})
    config.envs = (env("reverse_text"),)
    config.trainer.seq_buckets, config.trainer.microbatch_buckets = (256,), (32,)
    config.sampler.platform, config.launch.threads = "cpu", 1
    config.launch.chosen = ("sampler.urls",)
    run_dir = tmp_path / "a_run"
    (run_dir / "logs").mkdir(parents=True)
    (run_dir / "config.json").write_text(json.dumps(to_plain(config)))
    write_character_tokenizer(run_dir / "tokenizer")
    return run_dir


@pytest.fixture
def launch(capsys):
    def call(*words: str) -> tuple[int, str, str]:
        return main(["sampler", *words]), *capsys.readouterr()

    return call


def test_mistakes_are_one_clear_line(launch, run_dir, tmp_path, capsys):
    join = f"--join={run_dir}"
    wrong = {
        (f"--join={tmp_path / 'another'}",): "no run has started there: give its directory",
        (join, "--index=1"): "--join takes configuration and number from the run",
        (join, f"--config={run_dir / 'config.json'}"): "--join takes configuration and number from the run",
        (join, "--config.model.hidden_size=64"): "was started with another configuration: model.hidden_size was 32",
        (join, "--config.sampler.urls=http://a:1,http://b:2"): "with --join it must be the one address of this sampler",
        (join, "--config.sampler.urls=http://203.0.113.1:1"): "cannot listen there",
        (join, "--config.sampler.slotz=3"): "did you mean 'sampler.slots'?",
    }
    for words, line in wrong.items():
        code, out, err = launch(*words)
        assert (code, out) == (2, ""), words
        assert line in err and err.count("\n") == 1, err
    assert main(["trainer", join]) == 2 and "--join means nothing to `launch trainer`" in capsys.readouterr().err
    assert not (run_dir / membership.FOLDER).exists()


def test_a_dry_run_shows_the_runs_configuration_and_joins_nothing(launch, run_dir):
    before = (run_dir / "config.json").read_bytes()
    code, out, _ = launch(f"--join={run_dir}", "--config.sampler.slots=3", "--dry_run")
    assert code == 0 and "sampler.slots = 3    # command line" in out and "model.hidden_size = 32    # recipe" in out
    assert not (run_dir / membership.FOLDER).exists() and (run_dir / "config.json").read_bytes() == before


def test_names_are_taken_once_and_those_of_the_dead_are_free(tmp_path):
    assert membership.register(tmp_path, "sampler-100", "http://127.0.0.1:1")
    assert not membership.register(tmp_path, "sampler-100", "http://127.0.0.1:2")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait(30)
    (path,) = (tmp_path / membership.FOLDER).iterdir()
    entry = json.loads(path.read_text())
    path.write_text(json.dumps({**entry, "pid": dead.pid}))
    assert membership.members(tmp_path) == []
    assert membership.register(tmp_path, "sampler-100", "http://127.0.0.1:3")
    (member,) = membership.members(tmp_path)
    assert (member.url, member.pid, member.here) == ("http://127.0.0.1:3", os.getpid(), True)
    path.write_text(json.dumps({**entry, "host": "elsewhere", "pid": dead.pid}))
    assert [m.host for m in membership.members(tmp_path)] == ["elsewhere"], "that is not known to be dead"
    membership.unregister(tmp_path, "sampler-100")
    assert path.exists(), "it is not ours"


def wait_for(condition, process, timeout=150):
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def status(url):
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


@pytest.mark.slow
def test_a_process_joins_serves_and_leaves(run_dir, tmp_path):
    """Started in another folder than the run was."""
    member = Member("sampler-100", "http://127.0.0.1:1", "elsewhere", 1, 0.0)
    (run_dir / membership.FOLDER).mkdir()
    (run_dir / membership.FOLDER / "sampler-100.json").write_text(json.dumps(vars(member)))
    argv = [sys.executable, "-m", "launch", "sampler", f"--join={run_dir}"]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(
        argv, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )

    def own():
        return [m for m in membership.members(run_dir) if m.name == "sampler-101"]

    wait_for(own, process)
    (mine,) = own()
    assert mine.pid == process.pid
    wait_for(lambda: status(mine.url) == 200, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out == f"sampler-101 joins {run_dir} at {mine.url}; Ctrl-C lets it leave\n" and "stopped" in err
    assert [path.name for path in (run_dir / membership.FOLDER).iterdir()] == ["sampler-100.json"]
    assert (run_dir / "heartbeats" / "sampler-101").exists()
