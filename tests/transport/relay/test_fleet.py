"""Eight stand-in samplers, each a process, and one origin: what it sends, and what they have in the end."""

import os
import signal

import pytest

from intellect_jax.transport.weights import WeightStore
from intellect_jax.types import Version
from tests.transport.relay.fleet import Sampler, moved, nbytes, policy, samplers, sent, serving, until
from tests.transport.relay.worker import digest

V0, V1 = Version(0, 0), Version(0, 1)
COUNT = 8


pytestmark = pytest.mark.slow  # eight processes each


@pytest.fixture
def store(tmp_path):
    return WeightStore(tmp_path / "weights")


def all_at(fleet, version, tensors):
    """Every sampler's answer when all are asked at once; each must have the version bit for bit."""
    for sampler in fleet:
        sampler.ask(version)
    answers = [sampler.answer() for sampler in fleet]
    for answer in answers:
        assert answer.get("digest") == digest(tensors), answer
        assert answer["version"] == str(version)
    return answers


def test_the_trainer_sends_each_version_at_most_twice_to_eight_samplers(tmp_path, store):
    first = policy(24)
    second, changed = moved(first, 1)
    store.publish(V0, first.items())
    with serving(store) as (origin, url), samplers(url, tmp_path, COUNT) as fleet:
        all_at(fleet, V0, first)
        full = sent(origin, V0) / nbytes(tmp_path / "weights" / "v0-0")
        store.publish(V1, None, delta=(V0, changed))
        answers = all_at(fleet, V1, second)
        delta = sent(origin, V1) / nbytes(tmp_path / "weights" / "v0-1")
    from_origin = sum(answer["received"][""] for answer in answers)
    passed_on = sum(sum(answer["received"].values()) for answer in answers) - from_origin
    print(f"sent by the origin / bytes of the version: full {full:.3f}, delta {delta:.3f}")
    print(f"bytes from the origin {from_origin}, from samplers {passed_on}")
    assert full <= 2 and delta <= 2
    assert passed_on > 3 * from_origin  # six of eight copies at the least


def test_samplers_killed_in_mid_transfer_cost_the_others_nothing_but_time(tmp_path, store):
    tensors = policy(64)
    store.publish(V0, tensors.items())
    with serving(store) as (origin, url), samplers(url, tmp_path, COUNT) as fleet:
        for sampler in fleet:
            sampler.ask(V0)
        until(lambda: sent(origin) > 4e6)
        for sampler in fleet[:3]:
            sampler.kill()
        assert sent(origin) < nbytes(store.folder / "v0-0")  # it was in the middle
        for sampler in fleet[3:]:
            assert sampler.answer().get("digest") == digest(tensors)
        print(f"sent by the origin / bytes of the version: {sent(origin) / nbytes(store.folder / 'v0-0'):.3f}")
        assert sent(origin) <= 2 * nbytes(store.folder / "v0-0")


def test_a_frozen_sampler_holds_up_nobody(tmp_path, store):
    """It took chunks and neither says that they came nor passes any on."""
    tensors = policy(64)
    store.publish(V0, tensors.items())
    with serving(store) as (origin, url), samplers(url, tmp_path, 3) as fleet:
        frozen, *others = fleet
        frozen.ask(V0)
        until(lambda: sent(origin) > 2e6)
        os.kill(frozen.process.pid, signal.SIGSTOP)
        assert sent(origin) < nbytes(store.folder / "v0-0")
        for sampler in others:
            sampler.ask(V0)
        for sampler in others:
            assert sampler.answer().get("digest") == digest(tensors)
        os.kill(frozen.process.pid, signal.SIGCONT)
        assert frozen.answer().get("digest") == digest(tensors)


def test_a_killed_sampler_goes_on_where_it_was(tmp_path, store):
    tensors = policy(64)
    store.publish(V0, tensors.items())
    with serving(store) as (origin, url):
        sampler = Sampler(url, tmp_path / "cache").ready()
        sampler.ask(V0)
        until(lambda: sent(origin) > 20e6)
        sampler.kill()
        before = sent(origin)
        assert before < nbytes(store.folder / "v0-0")
        again = Sampler(url, tmp_path / "cache").ready()
        again.ask(V0)
        answer = again.answer()
        again.end()
    assert answer["digest"] == digest(tensors)
    whole = nbytes(store.folder / "v0-0")
    print(f"{before} bytes before it was killed, then {answer['received']['']} of {whole}")
    assert answer["received"][""] < whole - before + 4e6
