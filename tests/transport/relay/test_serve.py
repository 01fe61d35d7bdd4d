"""The origin as a process of its own."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from intellect_jax.transport.relay.client import SourceFailed, call
from intellect_jax.transport.relay.intake import Intake
from intellect_jax.transport.relay.serve import Serving
from intellect_jax.transport.weights import WeightStore
from intellect_jax.types import Version
from launch.addresses import free_ports
from tests.transport.relay.fleet import ROOT, policy, until

V0 = Version(0, 0)
MANIFEST = "/v0-0/manifest.json"


@pytest.fixture
def store(tmp_path):
    store = WeightStore(tmp_path / "weights")
    store.publish(V0, policy(2).items())
    return store


@pytest.fixture
def serving(store, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = Serving(store.folder, "127.0.0.1", free_ports(1)[0])
    until(lambda: answers(found))
    yield found
    found.close()


def answers(serving):
    try:
        return call(serving._address, "/versions", "")
    except SourceFailed:
        return None


def test_it_stays_until_all_have_the_last_version(serving, tmp_path):
    one = Intake(tmp_path / "cache", "127.0.0.1")
    waiting = threading.Thread(target=serving.linger, args=(V0, 1, 30.0))
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive()
    one.advance(serving._address + MANIFEST)
    waiting.join(5)
    assert not waiting.is_alive()
    one.close()


def test_it_does_not_wait_for_ever(serving, caplog):
    serving.linger(V0, 1, 0.5)
    assert "not every sampler has fetched version 0.0" in caplog.text


def test_one_that_dies_is_started_again_at_the_same_port(serving, tmp_path, caplog):
    serving._process.kill()
    serving._process.wait(10)
    serving.ensure()
    until(lambda: answers(serving))
    assert "exit code -9" in caplog.text
    one = Intake(tmp_path / "cache", "127.0.0.1")
    assert one.advance(serving._address + MANIFEST) == V0
    one.close()


def test_it_ends_with_the_trainer_however_that_ends(store):
    port = free_ports(1)[0]
    code = (
        "import sys, time; from intellect_jax.transport.relay.serve import Serving;"
        f"Serving(sys.argv[1], '127.0.0.1', {port}); print('started', flush=True); time.sleep(60)"
    )
    trainer = subprocess.Popen([sys.executable, "-c", code, str(store.folder)], cwd=ROOT, stdout=subprocess.PIPE)
    trainer.stdout.readline()
    url = f"http://127.0.0.1:{port}"

    def up():
        try:
            return call(url, "/versions", "")
        except SourceFailed:
            return None

    until(up)
    os.kill(trainer.pid, signal.SIGKILL)
    trainer.wait(10)
    until(lambda: not up())
    trainer.stdout.close()
