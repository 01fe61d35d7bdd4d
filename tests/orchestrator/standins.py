"""Plain servers on real ports where a real sampler would not do: slow, dying, lying."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from launch.addresses import free_ports
from tests.samplers import MAX_LEN, sampler_config

FEW_PROGRAMS = {"prefill_buckets": (MAX_LEN,), "prefill_rows": 1}  # of a real server that soon has compiled them


def config_for(urls, **sampler):
    config = sampler_config(**sampler)
    config.sampler.urls = tuple(urls)
    return config


def url() -> str:
    return f"http://127.0.0.1:{free_ports(1)[0]}"


@asynccontextmanager
async def answering(handler, address=None):
    """A server on a real port that runs ``handler`` for every path: what a broken sampler looks like."""
    address = address or url()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(address.rsplit(":", 1)[1])).start()
    try:
        yield address
    finally:
        await runner.cleanup()


def answer(token_ids=(4, 5), logprobs=(-0.5, -0.25), spans=(("0.1", 0, 2),), finish="stop", named=None):
    content = [{"token_id": t, "logprob": p} for t, p in zip(named or token_ids, logprobs, strict=False)]
    versions = [{"version": v, "start": s, "end": e} for v, s, e in spans]
    choice = {"token_ids": list(token_ids), "finish_reason": finish, "logprobs": {"content": content}}
    return {"choices": [{**choice, "weight_versions": versions}]}


METRICS = """\
vllm:generation_tokens_total 10
vllm:num_requests_running {running}
vllm:num_requests_waiting {waiting}
vllm:kv_cache_usage_perc {cache}
"""


@dataclass
class StandIn:
    """Takes updates and answers requests as told; keeps what it was asked."""

    update_seconds: float = 0.0
    generate_seconds: float = 0.0
    healthy: bool = True
    refuses: bool = False  # updates
    metrics: str | None = METRICS.format(running=0, waiting=0, cache=0.0)  # None: 500
    version: str | None = None
    paused: bool = False
    taken: list[str] = field(default_factory=list)  # versions
    asked: list[list[int]] = field(default_factory=list)  # prompts
    updating: asyncio.Event = field(default_factory=asyncio.Event)  # somebody has begun an update

    async def handle(self, http: web.Request) -> web.Response:
        handler = getattr(self, "on_" + http.path.strip("/").replace("/", "_"), None)
        return await handler(http) if handler else web.json_response({})

    async def on_health(self, http):
        return web.json_response({}, status=200 if self.healthy else 503)

    async def on_metrics(self, http):
        return web.Response(text=self.metrics or "", status=500 if self.metrics is None else 200)

    async def on_weight_info(self, http):
        return web.json_response({"weight_version": self.version})

    async def on_pause(self, http):
        self.paused = True
        self.updating.set()
        return web.json_response({})

    async def on_collective_rpc(self, http):
        return web.json_response({"results": [{"done": True, "error": None, "damaged": False}]})

    async def on_update_weights(self, http):
        await asyncio.sleep(self.update_seconds)
        return web.json_response({}, status=400 if self.refuses else 200)

    async def on_finish_weight_update(self, http):
        self.version = (await http.json())["weight_version"]
        self.taken.append(self.version)
        return web.json_response({})

    async def on_resume(self, http):
        self.paused = False
        return web.json_response({})

    async def on_inference_v1_generate(self, http):
        self.asked.append((await http.json())["token_ids"])
        await asyncio.sleep(self.generate_seconds)
        return web.json_response(answer(spans=((self.version or "0.1", 0, 2),)))


@asynccontextmanager
async def standing_in(*standins: StandIn):
    """Their URLs."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(answering(each.handle)) for each in standins]


async def until(condition, seconds=10.0):
    """Waits until ``condition()`` is true."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
