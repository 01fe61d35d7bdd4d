"""The trainer's end of weights by NCCL, against workers of this process; the library is a stand-in on host memory."""

import base64
import ctypes
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from intellect_jax.bridge.huggingface import from_hf, to_hf
from intellect_jax.bridge.published import Published
from intellect_jax.errors import UserError
from intellect_jax.transport.nccl import group as groups
from intellect_jax.transport.nccl.library import DTYPES, Library, NcclError, _UniqueId
from intellect_jax.transport.nccl.sender import NcclServing
from intellect_jax.transport.relay.client import SourceFailed, call
from intellect_jax.transport.safetensors_file import DTYPES as STORED
from intellect_jax.types import Version
from tests.nccl import stand_in
from tests.policies import SMALL, random_params

V1, V2, V3 = (Version(0, number) for number in (1, 2, 3))


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    made = stand_in(tmp_path_factory.mktemp("nccl"))
    return Library(made, made)


@pytest.fixture
def serving(library):
    served = NcclServing("127.0.0.1", 0, "", library)
    yield served
    served.close()


def published(seed, dtype="bfloat16"):
    params = jax.device_put(random_params(SMALL, seed))
    return params, Published(params, SMALL, dtype).lying()


class Worker:
    """What one of a vLLM server's workers does."""

    def __init__(self, library, serving, name="one", rank=1, size=1):
        self.library, self.address = library, f"http://127.0.0.1:{serving.port}"
        self.name, self.rank, self.size = name, rank, size
        self.comm = ctypes.c_void_p()

    def call(self, path, **body):
        return call(self.address, path, "", {"group": self.name, **body}, timeout=40)

    def join(self):
        asked = self.call("/join", size=self.size, nccl=self.library.version())
        raw = base64.b64decode(asked["unique_id"])
        unique_id = _UniqueId.from_buffer_copy(raw)
        self.library("ncclCommInitRank", ctypes.byref(self.comm), 1 + self.size, unique_id, self.rank)
        ones = (ctypes.c_float * 1)(1.0)
        self.library("ncclAllReduce", ones, ones, 1, DTYPES["F32"], 0, self.comm, None)

    def receive(self, version):
        """The version's tensors, in Hugging Face's shapes."""
        tensors = call(self.address, f"/v{version.lineage}-{version.number}", "")["tensors"]
        self.call("/send", version=str(version))
        found = {}
        for name, dtype, shape, turned in tensors:
            array = np.empty(shape[::-1] if turned else shape, STORED[dtype])
            pointer = array.ctypes.data
            self.library("ncclBroadcast", pointer, pointer, array.size, DTYPES[dtype], 0, self.comm, None)
            found[name] = array.T if turned else array
        self.call("/got", version=str(version))
        return found

    def vanish(self):
        self.library("ncclCommAbort", self.comm)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_arrives_is_what_is_published(library, serving, dtype):
    worker = Worker(library, serving)
    for version, seed in ((V1, 0), (V2, 1)):
        params, tensors = published(seed, dtype)
        serving.sender.hold(version, tensors)
        if version == V1:
            worker.join()
        found = worker.receive(version)
        right = dict(to_hf(params, SMALL, dtype))
        assert found.keys() == right.keys()
        for name, array in right.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array, err_msg=name)
        from_hf(found.__getitem__, found, SMALL)  # of the right shapes
    serving.linger(V2, 1, timeout=5)
    assert serving.sender.readers(V2) == 1 and serving.sender.readers(V1) == 0


def test_all_workers_of_a_server_get_it_and_two_servers_do_not_meet(library, serving):
    params, tensors = published(0)
    serving.sender.hold(V1, tensors)
    workers = [Worker(library, serving, "one", rank, 2) for rank in (1, 2)] + [Worker(library, serving, "two")]

    def work(worker):
        worker.join()
        return worker.receive(V1)

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(work, workers))
    for name, array in to_hf(params, SMALL, "bfloat16"):
        for each in found:
            np.testing.assert_array_equal(each[name], array)
    serving.linger(V1, 2, timeout=5)
    assert serving.sender.readers(V1) == 2


def test_the_version_before_is_still_there_and_older_ones_are_not(library, serving):
    worker = Worker(library, serving)
    with pytest.raises(SourceFailed, match="not here, but none"):
        worker.receive(V1)
    for version in (V1, V2, V3):
        serving.sender.hold(version, published(version.number)[1])
    worker.join()
    with pytest.raises(SourceFailed, match=r"version 0\.1 is not here, but 0\.2, 0\.3") as refused:
        worker.receive(V1)
    assert refused.value.status == 404
    right = dict(to_hf(random_params(SMALL, 2), SMALL, "bfloat16"))
    found = worker.receive(V2)
    assert all(np.array_equal(found[name], right[name]) for name in right)


def test_another_nccl_is_refused_before_it_hangs(library, serving):
    serving.sender.hold(V1, published(0)[1])
    with pytest.raises(SourceFailed, match=r"one has NCCL 22903, the trainer 23203, .*VLLM_NCCL_SO_PATH") as refused:
        Worker(library, serving).call("/join", size=1, nccl=22903)
    assert refused.value.status == 400


def test_what_was_sent_is_not_there_before_every_worker_says_so(library, serving):
    serving.sender.hold(V1, published(0)[1])
    pair = [Worker(library, serving, "one", rank, 2) for rank in (1, 2)]

    def work(worker):
        worker.join()
        return worker.receive(V1)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, pair))
        assert serving.sender.readers(V1) == 1
        serving.sender.hold(V2, published(1)[1])
        pair[0].call = lambda path, call=pair[0].call, **body: path == "/got" or call(path, **body)
        list(pool.map(lambda worker: worker.receive(V2), pair))
    assert serving.sender.readers(V2) == 0


def test_a_server_that_is_started_again_joins_again(library, serving, monkeypatch):
    serving.sender.hold(V1, published(0)[1])
    first = Worker(library, serving)
    with pytest.raises(SourceFailed, match="has not joined") as refused:
        first.receive(V1)
    assert refused.value.status == 503
    first.join()
    first.vanish()
    with pytest.raises((NcclError, SourceFailed)):  # the trainer finds nobody there
        first.receive(V1)
    second = Worker(library, serving)
    second.join()
    assert len(second.receive(V1)) == len(list(to_hf(random_params(SMALL, 0), SMALL)))


def test_a_worker_that_hangs_is_given_up(library, serving, monkeypatch):
    monkeypatch.setattr(groups, "JOIN_S", 0.5)
    serving.sender.hold(V1, published(0)[1])
    worker = Worker(library, serving)
    worker.join()
    worker.call("/send", version=str(V1))  # and receives nothing
    serving.linger(V1, 1, timeout=2)
    with pytest.raises(SourceFailed, match=r"must join again: .*(gone|gave up)"):
        worker.call("/send", version=str(V1))


def test_workers_that_wait_for_one_that_does_not_come_are_told(library, serving, monkeypatch):
    monkeypatch.setattr(groups, "MEET_S", 0.3)
    serving.sender.hold(V1, published(0)[1])
    with pytest.raises(SourceFailed, match="not all 2 workers asked within 0 s"):
        Worker(library, serving, size=2).join()
    pair = [Worker(library, serving, "one", rank, 2) for rank in (1, 2)]
    threads = [threading.Thread(target=worker.join) for worker in pair]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_a_machine_without_nccl_is_told_so_in_one_line(tmp_path):
    with pytest.raises(NcclError, match=r"cannot load .*libnccl.so.9"):
        Library(str(tmp_path / "libnccl.so.9"))
    if not any(device.platform == "gpu" for device in jax.devices()):
        with pytest.raises(
            UserError, match=r"weights.transport=nccl: cannot load .*; without it: weights.transport=http"
        ):
            NcclServing("127.0.0.1", 0, "")
