"""The batch queue over real sockets: order, bound, death of either side."""

import asyncio
import threading
from contextlib import asynccontextmanager

import numpy as np
import pytest

from intellect_jax.transport.batches import CUT, BatchClient, BatchServer, decode, encode
from intellect_jax.types import PackedBatch, Version
from launch.addresses import free_ports


def batch(step):
    arrays = {
        "tokens": np.full((2, 4, 8), step, np.int32),
        "loss_mask": np.arange(64).reshape(2, 4, 8) % 3 == 0,
        "advantages": np.random.default_rng(step).normal(size=(2, 4, 8)).astype(np.float32),
    }
    return PackedBatch(step, arrays, {"metrics": {"reward/mean": 0.5}, "ledger": {"picked": {"e": step}}})


@pytest.fixture(autouse=True)
def ask_often(monkeypatch):
    monkeypatch.setattr("intellect_jax.transport.batches.ASK_AGAIN_S", 1.0)


@pytest.fixture
def address():
    return f"tcp://127.0.0.1:{free_ports(1)[0]}"


def in_thread(function):
    """Runs the blocking trainer's side beside the event loop; returns a future of its result."""
    return asyncio.get_running_loop().run_in_executor(None, function)


async def serving(server):
    task = asyncio.create_task(server.serve())
    await asyncio.sleep(0)
    return task


async def heard(server, count):
    while server.messages.qsize() < count:
        await asyncio.sleep(0.01)


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 20))


def test_a_batch_crosses_bit_for_bit_and_in_parts():
    sent = batch(3)
    received = decode(encode(sent))
    assert (received.step, received.info) == (3, sent.info)
    for name, array in sent.arrays.items():
        assert received.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(received.arrays[name], array)
    parts = [decode(encode(sent, part, 2)).arrays["advantages"] for part in (0, 1)]
    np.testing.assert_array_equal(np.stack(parts, 2).reshape(2, 4, 8), sent.arrays["advantages"])


def test_the_queue_is_bounded_and_a_dead_trainers_batch_is_given_again(address):
    async def play():
        server = BatchServer(address, size=1)
        task = await serving(server)
        first = BatchClient(address, timeout=10)
        first.hello(Version(0, 0), "m", {})
        await heard(server, 1)
        server.reset(0)
        await server.offer(batch(1), server.epoch)
        assert server.full()
        with pytest.raises(asyncio.QueueFull):
            await server.offer(batch(2), server.epoch)
        assert (await in_thread(lambda: first.next(1))).step == 1
        assert server.found == 1
        assert not server.full(), "a batch that a trainer has taken no longer counts"
        before = server.epoch
        await server.offer(batch(2), before)
        first.close()  # dies while it trains batch 1
        second = BatchClient(address, timeout=10)
        second.hello(Version(1, 0), "m", {})
        asking = in_thread(lambda: second.next(1))
        await heard(server, 2)
        await server.offer(batch(1), before)  # was being made for the dead trainer
        await asyncio.sleep(0.3)
        assert not asking.done(), "batches of the abandoned lineage are not given away"
        server.reset(0)
        await server.offer(batch(1), before)
        assert not asking.done() and not server.full()
        await server.offer(batch(1), server.epoch)
        assert (await asking).step == 1
        assert server.found == 1, "asking for the same batch again finds nothing new"
        farewell = in_thread(second.done)
        await heard(server, 3)
        await farewell
        second.close()
        task.cancel()
        server.close()
        return [server.messages.get_nowait()["type"] for _ in range(3)]

    assert run(play()) == ["hello", "hello", "done"]


def test_a_restarted_orchestrator_asks_who_the_trainer_is(address):
    async def play():
        server = BatchServer(address, size=1)
        task = await serving(server)
        client = BatchClient(address, timeout=10)
        client.hello(Version(0, 0), "m0", {})
        client.published(Version(0, 5), "m5", {"picked": {"e": 9}})
        waiting = in_thread(lambda: client.next(6))  # and this orchestrator dies with the question
        await heard(server, 2)
        await asyncio.sleep(0.3)
        task.cancel()
        server.close()
        await asyncio.sleep(0.1)
        fresh = BatchServer(address, size=1)
        task = await serving(fresh)
        hello = await fresh.messages.get()
        fresh.reset(5)
        await fresh.offer(batch(6), fresh.epoch)
        received = await waiting
        client.close()
        task.cancel()
        fresh.close()
        return hello, received.step

    hello, step = run(play())
    assert hello == {"type": "hello", "version": "0.5", "manifest": "m5", "ledger": {"picked": {"e": 9}}}
    assert step == 6


def test_trainer_processes_each_get_their_part_in_however_many_rounds_they_wait(address, monkeypatch):
    monkeypatch.setattr("intellect_jax.transport.batches.ASK_AGAIN_S", 0.2)

    async def play():
        server = BatchServer(address, size=1)
        task = await serving(server)
        clients = [BatchClient(address, timeout=10, part=part, parts=2) for part in (0, 1)]
        early = await in_thread(lambda: clients[1].next(1, rounds(2)))  # before anyone said hello
        clients[0].hello(Version(0, 0), "m", {})
        await heard(server, 1)
        server.reset(0)
        waiting = [in_thread(lambda client=client: ask_again(client)) for client in clients]
        await asyncio.sleep(0.5)
        await server.offer(batch(1), server.epoch)
        parts = [await each for each in waiting]
        for client in clients:
            client.close()
        task.cancel()
        server.close()
        return early, parts, server.messages.qsize()

    def rounds(count):
        left = iter([False] * count)
        return lambda: next(left, True)

    def ask_again(client):
        while (received := client.next(1, rounds(2))) is None:
            pass
        return received

    early, parts, greetings = run(play())
    assert early is None and greetings == 1
    assert parts[0].info[CUT] == parts[1].info[CUT] > 0
    rows = np.stack([part.arrays["advantages"] for part in parts], 2)
    np.testing.assert_array_equal(rows.reshape(2, 4, 8), batch(1).arrays["advantages"])


def test_waiting_ends_with_a_message_or_when_told_to_stop(address):
    client = BatchClient(address, timeout=0.5)
    with pytest.raises(
        TimeoutError, match=r"no sign of life from the orchestrator for 0.5 s while waiting for batch 7"
    ):
        client.next(7)
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    assert BatchClient(address, timeout=60).next(7, stop.is_set) is None
    client.close()


@asynccontextmanager
async def greeted(address, version, timeout):
    """A server in service and the client of a trainer that starts from ``version``; the queue is empty."""
    server = BatchServer(address, size=1)
    task = await serving(server)
    client = BatchClient(address, timeout=timeout)
    client.hello(version, "m", {})
    await heard(server, 1)
    server.reset(version.number)
    try:
        yield server, client
    finally:
        task.cancel()
        client.close()
        server.close()


def test_signs_of_life_keep_a_trainer_waiting(address, monkeypatch):
    monkeypatch.setattr("intellect_jax.transport.batches.SIGN_OF_LIFE_S", 0.2)

    async def play():
        async with greeted(address, Version(0, 0), timeout=1.0) as (server, client):
            waiting = in_thread(lambda: client.next(1))
            await asyncio.sleep(2.0)  # longer than its timeout
            await server.offer(batch(1), server.epoch)
            return (await waiting).step

    assert run(play()) == 1


def test_a_waiting_trainer_is_told_of_a_damaged_version_once(address, monkeypatch):
    monkeypatch.setattr("intellect_jax.transport.batches.SIGN_OF_LIFE_S", 0.1)
    told = []

    async def play():
        async with greeted(address, Version(2, 0), timeout=10) as (server, client):
            server.damaged(Version(2, 0))
            waiting = in_thread(lambda: client.next(1, on_damaged=told.append))
            await asyncio.sleep(1.0)
            await server.offer(batch(1), server.epoch)
            await waiting

    run(play())
    assert told == [Version(2, 0)]
