"""The HTTP server: token routes for programs, health and metrics; text and administration live beside it."""

from __future__ import annotations

import time

from aiohttp import web

from intellect_jax.monitor.server_stats import NAMES
from intellect_jax.sampler import admin, stream, text
from intellect_jax.sampler.protocol import generate_chunk, generate_response, parse_generate
from intellect_jax.sampler.state import (
    STATE,
    ServerState,
    Unavailable,
    cache_usage,
    complete,
    errors_as_json,
    json_response,
    read_json,
)

_MAX_BODY = 64 << 20  # bytes; a prompt of a million tokens fits
_BACKLOG = 4096  # connections: an orchestrator opens one for each rollout in flight


def make_app(state: ServerState) -> web.Application:
    app = web.Application(middlewares=[errors_as_json, admin.guard], client_max_size=_MAX_BODY)
    app[STATE] = state
    app.add_routes(
        [
            web.post("/inference/v1/generate", _generate),
            web.post("/v1/completions", text.completions),
            web.post("/v1/chat/completions", text.chat_completions),
            web.get("/v1/models", _models),
            web.get("/health", _health),
            web.get("/metrics", _metrics),
            web.get("/weight_info", admin.weight_info),
            *admin.routes(),
        ]
    )
    return app


async def start(app: web.Application, host: str, port: int) -> web.AppRunner:
    """Listens; raises OSError when the port is taken. End it with ``await runner.cleanup()``."""
    # A caller who hangs up cancels its handler, which drops its request from the engine.
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, host, port, backlog=_BACKLOG).start()
    return runner


async def _generate(http: web.Request) -> web.StreamResponse:
    state, body = http.app[STATE], await read_json(http)
    request = parse_generate(body, state.limits)
    if body.get("stream", False):
        return await stream.respond(http, state, request, generate_chunk)
    return json_response(generate_response(await complete(state, request)))


async def _models(http: web.Request) -> web.Response:
    state = http.app[STATE]
    model = {
        "id": state.model_name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "intellect_jax",
    }
    return json_response({"object": "list", "data": [{**model, "max_model_len": state.limits.max_len}]})


async def _health(http: web.Request) -> web.Response:
    """200 once every program is compiled, weights or not."""
    engine = http.app[STATE].engine
    if engine.failure:
        raise Unavailable(f"the engine failed: {engine.failure!r}", "failed")
    if not engine.ready.is_set():
        raise Unavailable("compiling", "starting")
    return json_response({"status": "ok"})


async def _metrics(http: web.Request) -> web.Response:
    """Prometheus' text format; what every kind of server tells stands under vLLM's names."""
    state = http.app[STATE]
    stats = state.engine.stats()
    rows = [
        (NAMES["generated"], "counter", stats.generated),
        (NAMES["running"], "gauge", stats.running),
        (NAMES["waiting"], "gauge", stats.waiting),
        (NAMES["cache"], "gauge", cache_usage(state)),
        ("intellect_jax_cache_pages_used", "gauge", stats.pages),
        ("intellect_jax_prefix_tokens_reused_total", "counter", stats.reused),
        ("intellect_jax_preemptions_total", "counter", stats.preempted),
        ("intellect_jax_weight_updates_total", "counter", stats.updates),
        ("intellect_jax_weight_update_seconds", "gauge", stats.update_seconds),
        ("intellect_jax_weight_version", "gauge", stats.version.number if stats.version else -1),
        ("intellect_jax_compilations_after_warmup_total", "counter", state.compilations.after_warmup),
        ("intellect_jax_paused", "gauge", int(stats.paused)),
    ]
    lines = [f"# TYPE {name} {kind}\n{name} {value}\n" for name, kind, value in rows]
    return web.Response(text="".join(lines), headers={"Content-Type": "text/plain; version=0.0.4"})
