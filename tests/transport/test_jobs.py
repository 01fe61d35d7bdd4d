"""The job pool against real worker processes, which a small supervisor starts again when they end."""

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from intellect_jax.transport.job_server import STUCK
from intellect_jax.transport.jobs import JobError, JobPool, JobTimeout

SCRIPT = Path(__file__).with_name("job_worker.py")
LOST_AFTER = 2.0


def free_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


class Supervisor:
    """Keeps ``count`` workers running and remembers how the others ended."""

    def __init__(self, address, count):
        self._address = address
        self.processes = [self._start(i) for i in range(count)]
        self.exit_codes = []
        self._task = asyncio.create_task(self._watch())

    def _start(self, index):
        command = [sys.executable, SCRIPT, self._address, str(index), str(LOST_AFTER)]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL)

    async def _watch(self):
        while True:
            await asyncio.sleep(0.05)
            for i, process in enumerate(self.processes):
                if process.poll() is not None:
                    self.exit_codes.append(process.returncode)
                    self.processes[i] = self._start(i)

    def close(self):
        self._task.cancel()
        for process in self.processes:
            process.kill()
            process.wait(10)


@contextlib.asynccontextmanager
async def system(workers, **options):
    """A pool with that many workers connected."""
    address = free_address()
    supervisor = Supervisor(address, workers)
    try:
        async with JobPool(address, lost_after=LOST_AFTER, **options) as pool:
            async with asyncio.timeout(30):
                while pool.workers < workers:
                    await asyncio.sleep(0.02)
            yield pool, supervisor
    finally:
        supervisor.close()


def call(pool, method, timeout=20.0, **payload):
    return pool.call("some_env", method, payload, timeout)


async def gather(*calls):
    async with asyncio.timeout(60):
        return await asyncio.gather(*calls, return_exceptions=True)


def run(workers, scenario, **options):
    async def main():
        async with system(workers, **options) as (pool, supervisor):
            return await scenario(pool, supervisor)

    return asyncio.run(main())


def test_results_errors_and_limits():
    async def scenario(pool, supervisor):
        assert (await call(pool, "echo", value={"é": [1, None]}))["value"] == {"é": [1, None]}
        for kind, text in (("value", "ValueError"), ("exit", "SystemExit"), ("timeout", "TimeoutError")):
            with pytest.raises(JobError, match=f"some_env.raises: {text}: so it is"):
                await call(pool, "raises", kind=kind)
        for method in ("not_json", "not_finite"):
            with pytest.raises(JobError, match=f"some_env.{method}: .*Error: "):
                await call(pool, method)
        started = time.monotonic()
        with pytest.raises(JobTimeout, match=r"some_env.sleep took longer than 0.3 s"):
            await call(pool, "sleep", timeout=0.3, seconds=60)
        assert time.monotonic() - started < 5
        assert (pool.lost_workers, supervisor.exit_codes) == (0, [])  # none of that cost a worker

    run(1, scenario)


def test_calls_run_at_once_on_all_workers():
    """Eight calls are all under way on two workers with four slots: the ninth has to wait."""

    async def scenario(pool, _):
        started = time.monotonic()
        pids = await gather(*(call(pool, "sleep", seconds=0.6) for _ in range(9)))
        took = time.monotonic() - started
        assert len(set(pids)) == 2 and max(pids[:8].count(p) for p in pids) == 4
        assert 1.2 <= took < 5

    run(2, scenario)


def test_a_blocking_call_costs_itself_only():
    """One worker for each way to block; calls with longer and with shorter limits run beside the one that blocks."""

    async def scenario(pool, supervisor, method, payload):
        blocking = call(pool, method, timeout=1.6, **payload)
        longer = call(pool, "sleep", timeout=20, seconds=3.5)
        shorter = call(pool, "sleep", timeout=1.4, seconds=0.5)
        first, *others = await gather(blocking, longer, shorter, *(call(pool, "echo", value=i) for i in range(6)))
        assert isinstance(first, JobTimeout), (method, first)
        assert not [r for r in others if isinstance(r, BaseException)], (method, others)
        assert supervisor.exit_codes == [STUCK] and pool.lost_workers == 1, method
        assert pool.retried_calls >= 1, method

    async def one(method, **payload):
        async with system(1) as (pool, supervisor):
            await scenario(pool, supervisor, method, payload)

    async def main():
        ways = one("thread_sleep", seconds=1000), one("block_loop", delay=0.2), one("swallow_cancellation")
        await asyncio.gather(*ways)

    asyncio.run(main())


def test_code_that_keeps_the_interpreter_lock_fails_alone():
    """It cannot be told from a crash, so it is retried; its last try runs alone, so that it cannot fail others."""

    async def scenario(pool, supervisor):
        bad = call(pool, "keep_interpreter_lock", timeout=30)
        others = [call(pool, "sleep", seconds=0.4 + i / 10) for i in range(10)]
        first, *rest = await gather(bad, *others)
        assert isinstance(first, JobError) and "lost 2 workers" in str(first)
        assert not [r for r in rest if isinstance(r, BaseException)]
        async with asyncio.timeout(20):
            while len(supervisor.exit_codes) < 2:
                await asyncio.sleep(0.1)
        assert set(supervisor.exit_codes) == {1}

    run(2, scenario, max_attempts=2)


def test_a_call_that_kills_workers_fails_alone():
    async def scenario(pool, supervisor):
        bad = call(pool, "die")
        first, *rest = await gather(bad, *(call(pool, "sleep", seconds=0.3) for _ in range(12)))
        assert isinstance(first, JobError) and "lost 3 workers" in str(first)
        assert not [r for r in rest if isinstance(r, BaseException)]
        assert supervisor.exit_codes == [-signal.SIGKILL] * 3 and pool.lost_workers == 3

    run(2, scenario)


def test_a_killed_worker_is_noticed_by_its_silence_and_its_calls_are_retried():
    """Nobody starts it again: only the missing heartbeat tells."""

    async def scenario(pool, supervisor):
        supervisor._task.cancel()
        calls = [asyncio.create_task(call(pool, "sleep", seconds=1.0)) for _ in range(8)]
        await asyncio.sleep(0.5)
        victim, survivor = supervisor.processes
        victim.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        pids = await gather(*calls)
        assert set(pids) == {survivor.pid}
        assert (pool.workers, pool.lost_workers, pool.retried_calls) == (1, 1, 4)
        assert LOST_AFTER - 0.6 < time.monotonic() - killed < LOST_AFTER + 4

    run(2, scenario)


def test_a_frozen_worker_is_lost_and_its_late_answers_are_ignored():
    async def scenario(pool, supervisor):
        supervisor._task.cancel()
        answer = asyncio.create_task(call(pool, "sleep", seconds=0.7))
        other = asyncio.create_task(call(pool, "sleep", seconds=0.7))
        await asyncio.sleep(0.3)
        frozen, survivor = supervisor.processes
        frozen.send_signal(signal.SIGSTOP)
        assert set(await gather(answer, other)) == {survivor.pid}
        frozen.send_signal(signal.SIGCONT)
        await asyncio.sleep(0.3)
        assert (await call(pool, "echo", value=1))["value"] == 1
        assert pool.lost_workers == 1

    run(2, scenario)


def test_a_stopping_worker_hands_its_calls_on_at_once():
    async def scenario(pool, supervisor):
        slow = asyncio.create_task(call(pool, "thread_sleep", seconds=2))
        await asyncio.sleep(0.3)
        supervisor.processes[0].terminate()
        await slow
        assert supervisor.exit_codes == [0] and pool.retried_calls == 1

    run(1, scenario)


def test_workers_outlive_the_pool():
    """A new pool at the same address takes over workers that nobody started again."""

    async def main():
        address = free_address()
        supervisor = Supervisor(address, 1)
        supervisor._task.cancel()
        try:
            pids = []
            for value in range(2):
                async with JobPool(address, start_timeout=20) as pool:
                    pids.append((await call(pool, "echo", value=value))["pid"])
            assert pids[0] == pids[1] == supervisor.processes[0].pid
        finally:
            supervisor.close()

    asyncio.run(main())


def test_without_workers_a_call_gives_up():
    async def main():
        async with JobPool(free_address(), start_timeout=0.5) as pool:
            with pytest.raises(JobTimeout, match=r"some_env.echo: no environment worker at tcp://.* for \d+ s"):
                await call(pool, "echo", value=1)

    asyncio.run(main())


def test_closing_the_pool_fails_what_waits():
    async def main():
        async with JobPool(free_address()) as pool:
            waiting = asyncio.create_task(call(pool, "echo", value=1))
            await asyncio.sleep(0.05)
        with pytest.raises(JobError, match="the pool was closed"):
            await waiting

    asyncio.run(main())


def test_does_not_import_jax():
    code = (
        "import sys, intellect_jax.transport.jobs, intellect_jax.transport.job_server; sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
