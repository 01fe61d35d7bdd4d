"""What the HTTP handlers share, and the errors that they answer with."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from intellect_jax.models.transformer import Params
from intellect_jax.monitor.compilations import CompilationCounter
from intellect_jax.sampler.engine import Engine, UpdateRefused
from intellect_jax.sampler.mailbox import EngineStopped
from intellect_jax.sampler.protocol import BadRequest, Limits
from intellect_jax.sampler.reader import Reader
from intellect_jax.sampler.requests import Request
from intellect_jax.types import Version

log = logging.getLogger(__name__)


@dataclass
class ServerState:
    engine: Engine
    limits: Limits
    pages: int  # of the KV cache
    tokenizer: Any  # None: the text routes are refused
    model_name: str
    reader: Reader
    request_timeout: float  # seconds, of one generation
    update_timeout: float  # seconds, of one administrative call
    compilations: CompilationCounter
    admin_token: str = ""  # empty: administration from this machine only
    staged: tuple[Params, Version] | None = None  # verified and on the device, not installed
    updating: asyncio.Lock = field(default_factory=asyncio.Lock)


STATE = web.AppKey("state", ServerState)


class Unavailable(Exception):
    """The server cannot do this now; ``code`` tells a client why."""

    def __init__(self, message: str, code: str):
        super().__init__(message)
        self.code = code


def submit(state: ServerState, request: Request) -> None:
    """Hands the request to the engine; raises EngineStopped, and Unavailable while there is no policy."""
    if state.engine.stats().version is None:
        raise Unavailable("no weights yet", "no_weights")
    state.engine.submit(request)


def cache_usage(state: ServerState) -> float:
    """Share of the KV cache's pages that running requests have."""
    return state.engine.stats().pages / state.pages


async def complete(state: ServerState, request: Request) -> Request:
    """Runs one request to its end; raises TimeoutError too. Cancelling this drops the request from the engine."""
    submit(state, request)
    return await asyncio.wait_for(asyncio.wrap_future(request.future), state.request_timeout)


async def read_json(request: web.Request) -> dict[str, Any]:
    """The body as a JSON object; raises BadRequest. An empty body is an empty object."""
    raw = await request.read()
    try:
        body = json.loads(raw or b"{}")
    except ValueError as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    return body


def json_response(content: dict[str, Any]) -> web.Response:
    """Strict JSON: a non-finite number is an error of ours (500), never sent."""
    return web.json_response(content, dumps=lambda value: json.dumps(value, allow_nan=False))


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """One line under ``error.message`` for everything that goes wrong."""
    try:
        return await handler(request)
    except BadRequest as error:
        return _error(400, str(error), "bad_request")
    except UpdateRefused as error:
        return _error(409, str(error), "update_refused")
    except Unavailable as error:
        return _error(503, str(error), error.code)
    except EngineStopped as error:
        return _error(503, str(error), "stopped")
    except TimeoutError:
        return _error(504, f"{request.path} took too long", "timeout")
    except web.HTTPException as error:
        return _error(error.status, error.reason, "http")
    except Exception as error:
        log.exception("%s failed", request.path)
        return _error(500, f"{type(error).__name__}: {error}", "internal")


def _error(status: int, message: str, code: str) -> web.Response:
    return web.json_response({"error": {"message": message, "code": code}}, status=status)
