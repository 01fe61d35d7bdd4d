"""Administrative routes: pausing and weight updates, in vLLM's protocol.

/collective_rpc with ``read_version`` has a version read, verified and put on the device while requests go on. Then, in
a pause, /update_weights takes it, or reads it now, and /finish_weight_update makes it the policy between two decode
steps. Any failure before that leaves the old policy in place.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from collections.abc import Awaitable
from concurrent.futures import Future
from typing import Any, get_args

from aiohttp import web

from intellect_jax.sampler.engine import PauseMode, UpdateRefused
from intellect_jax.sampler.protocol import BadRequest
from intellect_jax.sampler.state import STATE, Handler, ServerState, Unavailable, json_response, read_json
from intellect_jax.transport.reading import WeightError
from intellect_jax.types import Version


def routes() -> list[web.RouteDef]:
    return [
        web.post("/init_weight_transfer_engine", _accept),
        web.post("/reset_prefix_cache", _accept),  # every new version does
        web.post("/collective_rpc", _rpc),
        web.post("/pause", _pause),
        web.post("/start_weight_update", _start),
        web.post("/update_weights", _update),
        web.post("/finish_weight_update", _finish),
        web.post("/resume", _resume),
    ]


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Administration is for programs on this machine and for those who know the token.

    A request with an Origin comes from a web page, whose browser may well run on this machine.
    """
    trusted = _local(request) and "Origin" not in request.headers
    if request.path in ADMIN_PATHS and not (trusted or _authorised(request)):
        raise web.HTTPForbidden(reason="administrative routes: from this machine, or with the bearer token")
    return await handler(request)


def _local(request: web.Request) -> bool:
    try:
        return ipaddress.ip_address(request.remote or "").is_loopback
    except ValueError:
        return False


def _authorised(request: web.Request) -> bool:
    token = request.app[STATE].admin_token
    given = request.headers.get("Authorization", "").removeprefix("Bearer ")
    return bool(token) and hmac.compare_digest(given.encode(), token.encode())


async def _accept(request: web.Request) -> web.Response:
    await read_json(request)
    return _done()


async def _pause(request: web.Request) -> web.Response:
    state, mode = request.app[STATE], request.query.get("mode", "abort")
    modes: dict[str, PauseMode] = {name: name for name in get_args(PauseMode)}
    if mode not in modes:
        raise BadRequest(f"mode={mode}: must be one of {', '.join(modes)}")
    await _within(state, state.engine.pause(modes[mode]))
    return _done()


async def _resume(request: web.Request) -> web.Response:
    state = request.app[STATE]
    await _within(state, state.engine.resume())
    return _done()


async def _rpc(request: web.Request) -> web.Response:
    """The two calls that our vLLM workers know too, with their answers."""
    state, body = request.app[STATE], await read_json(request)
    kwargs = body.get("kwargs")
    match body.get("method"), kwargs:
        case "read_version", {"manifest": str(manifest), "version": str(version)}:
            state.reader.begin(manifest, version)
            return json_response({"results": [None]})
        case "version_read", {"version": str(version)}:
            return json_response({"results": [state.reader.state(version)]})
    raise BadRequest(f"method={body.get('method')!r} with {kwargs!r}: must be read_version or version_read")


async def _start(request: web.Request) -> web.Response:
    request.app[STATE].staged = None
    return _done()


async def _update(request: web.Request) -> web.Response:
    state, body = request.app[STATE], await read_json(request)
    info = body.get("update_info")
    if not isinstance(info, dict) or not isinstance(info.get("manifest"), str):
        raise BadRequest("update_info.manifest must be the path or URL of a weight manifest")
    try:
        state.staged = await _within(state, state.reader.finish(info["manifest"]))
    except WeightError as error:
        raise Unavailable(f"{info['manifest']}: {error}", "damaged_weights") from error
    except ValueError as error:
        raise BadRequest(f"{info['manifest']}: {error}") from error
    return _done()


async def _finish(request: web.Request) -> web.Response:
    state, body = request.app[STATE], await read_json(request)
    async with state.updating:
        if state.staged is None:
            raise UpdateRefused("no weights are staged: call /start_weight_update and /update_weights first")
        params, version = state.staged
        if body.get("weight_version") != str(version):
            raise BadRequest(f"weight_version={body.get('weight_version')!r}: the staged weights are {version}")
        state.staged = None
        await _within(state, state.engine.install(params, version))
    return _done()


async def weight_info(request: web.Request) -> web.Response:
    """GET /weight_info: the version that samples now, null before the first."""
    stats = request.app[STATE].engine.stats()
    version: Version | None = stats.version
    return json_response({"weight_version": version and str(version), "updates": stats.updates})


async def _within(state: ServerState, work: Future[Any] | Awaitable[Any]) -> Any:
    """The result, or TimeoutError after ``update_timeout``."""
    awaitable = asyncio.wrap_future(work) if isinstance(work, Future) else work
    return await asyncio.wait_for(awaitable, state.update_timeout)


def _done() -> web.Response:
    return json_response({"status": "ok"})


ADMIN_PATHS = frozenset(route.path for route in routes())
