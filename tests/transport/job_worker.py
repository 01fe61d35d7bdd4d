"""A worker process whose methods misbehave in every way that the tests ask for: ADDRESS INDEX LOST_AFTER."""

import asyncio
import contextlib
import os
import re
import signal
import sys
import time

from intellect_jax.transport.job_server import JobServer


async def handle(env, method, payload):
    return await METHODS[method](**payload)


async def echo(value):
    return {"value": value, "pid": os.getpid()}


async def sleep(seconds):
    await asyncio.sleep(seconds)
    return os.getpid()


async def thread_sleep(seconds):
    await asyncio.to_thread(time.sleep, seconds)
    return os.getpid()


async def block_loop(delay):
    await asyncio.sleep(delay)
    await asyncio.gather(blocking())


async def blocking():
    time.sleep(1000)


async def swallow_cancellation():
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(1000)


async def keep_interpreter_lock():
    re.match("(a+)+$", "a" * 64 + "b")


async def die():
    os.kill(os.getpid(), signal.SIGKILL)


async def raises(kind):
    raise {"value": ValueError, "exit": SystemExit, "timeout": TimeoutError}[kind]("so it is")


async def not_json():
    return {1, 2}


async def not_finite():
    return float("nan")


METHODS = {f.__name__: f for f in (echo, sleep, thread_sleep, block_loop, swallow_cancellation)}
METHODS |= {f.__name__: f for f in (keep_interpreter_lock, die, raises, not_json, not_finite)}

if __name__ == "__main__":
    address, index, lost_after = sys.argv[1:]
    server = JobServer(address, int(index), handle, slots=4, lost_after=float(lost_after))
    signal.signal(signal.SIGTERM, lambda *_: server.stop())
    server.run()
