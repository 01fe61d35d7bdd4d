"""/v1/completions and /v1/chat/completions: text in, text out, for people and for tools that speak OpenAI's way."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from aiohttp import web

from intellect_jax.data.chat import render_prompt
from intellect_jax.data.messages import ChatError, checked_messages, checked_tools
from intellect_jax.data.template import endings
from intellect_jax.sampler import stream
from intellect_jax.sampler.protocol import BadRequest, build_request
from intellect_jax.sampler.requests import Chunk, Request
from intellect_jax.sampler.state import STATE, ServerState, complete, json_response, read_json

# What a body may say besides sampling parameters.
_ENVELOPE = {
    "model",
    "prompt",
    "messages",
    "tools",
    "stream",
    "user",
    "max_completion_tokens",
    "stream_options",
    "store",
}

Choice = Callable[[str, str | None], dict[str, Any]]  # of a text (or a piece of one) and the finish reason


async def completions(http: web.Request) -> web.StreamResponse:
    state, body = _state(http), await read_json(http)
    prompt = body.get("prompt")
    token_ids = state.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    request = build_request(token_ids, _sampling_params(body), state.limits)

    def choice(text: str, finish: str | None) -> dict[str, Any]:
        return {"index": 0, "text": text, "finish_reason": finish}

    return await _answer(http, body, request, "text_completion", choice, choice)


async def chat_completions(http: web.Request) -> web.StreamResponse:
    state, body = _state(http), await read_json(http)
    token_ids = _render(state, body)
    params = _sampling_params(body)
    stop = params.get("stop_token_ids") or []
    if isinstance(stop, list) and not params.get("ignore_eos"):
        params["stop_token_ids"] = stop + sorted(endings(state.tokenizer).ids)
    params.setdefault("max_tokens", body.get("max_completion_tokens") or state.limits.max_len - len(token_ids))
    request = build_request(token_ids, params, state.limits)

    def whole(text: str, finish: str | None) -> dict[str, Any]:
        return {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}

    def piece(text: str, finish: str | None) -> dict[str, Any]:
        return {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": finish}

    return await _answer(http, body, request, "chat.completion", whole, piece)


async def _answer(
    http: web.Request, body: dict[str, Any], request: Request, kind: str, whole: Choice, piece: Choice
) -> web.StreamResponse:
    state = _state(http)
    envelope = {
        "id": f"{kind}-{request.params.seed:016x}",
        "created": int(time.time()),
        "model": state.model_name,
    }
    if body.get("stream", False):
        pieces = _Pieces(state.tokenizer)

        def event(chunk: Chunk) -> dict[str, Any]:
            text = pieces.add(chunk.token_ids)
            return {
                **envelope,
                "object": f"{kind}.chunk",
                "choices": [piece(text, chunk.finish_reason or None)],
            }

        return await stream.respond(http, state, request, event)
    await complete(state, request)
    text = state.tokenizer.decode(request.token_ids, skip_special_tokens=True)
    used = {"prompt_tokens": len(request.prompt), "completion_tokens": len(request.token_ids)}
    usage = {**used, "total_tokens": sum(used.values())}
    choices = [whole(text, request.finish_reason)]
    return json_response({**envelope, "object": kind, "choices": choices, "usage": usage})


class _Pieces:
    """Text of a growing answer: a character whose bytes are still incomplete waits for the next piece."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._token_ids: list[int] = []
        self._said = 0

    def add(self, token_ids: list[int]) -> str:
        self._token_ids += token_ids
        text = self._tokenizer.decode(self._token_ids, skip_special_tokens=True)
        new = text[self._said :] if not text.endswith("\ufffd") else ""
        self._said += len(new)
        return new


def _state(http: web.Request) -> ServerState:
    state = http.app[STATE]
    if state.tokenizer is None:
        raise BadRequest("this server has no tokenizer: use /inference/v1/generate")
    return state


def _render(state: ServerState, body: dict[str, Any]) -> list[int]:
    if not body.get("messages"):
        raise BadRequest('messages must be a list of {"role": text, "content": text}')
    try:
        messages = checked_messages("messages", body["messages"])
        return render_prompt(state.tokenizer, messages, checked_tools("tools", body.get("tools")))
    except ChatError as error:
        raise BadRequest(str(error)) from error


def _sampling_params(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in _ENVELOPE}
