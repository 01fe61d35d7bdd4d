"""Server-sent events: the engine's chunks, from its thread to a response that is being written."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from aiohttp import web

from intellect_jax.sampler.protocol import BadRequest
from intellect_jax.sampler.requests import Chunk, Request
from intellect_jax.sampler.state import ServerState, submit

log = logging.getLogger(__name__)


async def respond(
    http: web.Request, state: ServerState, request: Request, event: Callable[[Chunk], dict[str, Any]]
) -> web.StreamResponse:
    """Writes ``event(chunk)`` for each chunk, then [DONE]. What goes wrong on the way is an event named error."""
    if request.params.return_routed_experts:
        raise BadRequest("return_routed_experts cannot be streamed")
    chunks = _chunks(state, request)
    first = await anext(chunks)  # before the headers, so that a refusal still has its status
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await response.prepare(http)
    try:
        await _write(response, event(first))
        async for chunk in chunks:
            await _write(response, event(chunk))
        await response.write(b"data: [DONE]\n\n")
    except Exception as error:
        log.warning("a stream broke off: %r", error)
        await _write(response, {"error": {"message": repr(error), "code": "stream"}})
    finally:
        request.future.cancel()  # nobody listens any more
    return response


async def _chunks(state: ServerState, request: Request) -> AsyncIterator[Chunk]:
    """Chunks as they are decoded; raises what the request's future raises, and TimeoutError."""
    loop, arrived = asyncio.get_running_loop(), asyncio.Queue[Chunk | None]()
    deadline = loop.time() + state.request_timeout
    request.on_chunk = lambda chunk: _hand_over(loop, arrived, chunk)
    request.future.add_done_callback(lambda _: _hand_over(loop, arrived, None))
    submit(state, request)
    while chunk := await asyncio.wait_for(arrived.get(), deadline - loop.time()):
        yield chunk
    request.future.result()
    if request.finish_reason == "abort":
        version, count = state.engine.stats().version, len(request.token_ids)
        assert version is not None
        yield Chunk([], [], version, count, "abort")


def _hand_over(loop: asyncio.AbstractEventLoop, queue: asyncio.Queue, item: Chunk | None) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(queue.put_nowait, item)


async def _write(response: web.StreamResponse, content: dict[str, Any]) -> None:
    await response.write(f"data: {json.dumps(content, allow_nan=False)}\n\n".encode())
