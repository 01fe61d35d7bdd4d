"""Bodies of the generation routes: what they may say, and how answers are written (vLLM's field names)."""

from __future__ import annotations

import base64
import secrets
from dataclasses import dataclass
from typing import Any

import numpy as np

from intellect_jax.sampler.requests import Chunk, Request, SamplingParams, Span

# Settings that other servers know and that change nothing at these values.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (None, 0, 1, True, False),
    "prompt_logprobs": (None,),
    "top_k": (-1, 0),
    "min_p": (0,),
    "min_tokens": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "stop": (None, [], ""),
    "detokenize": (True, False),
    "skip_special_tokens": (True, False),
}
_KNOWN = {
    "max_tokens",
    "seed",
    "temperature",
    "top_p",
    "stop_token_ids",
    "ignore_eos",
    "return_routed_experts",
}


class BadRequest(ValueError):
    """The caller's mistake, as one line that says what would be right."""


@dataclass(frozen=True)
class Limits:
    max_len: int  # prompt plus answer, tokens
    vocab_size: int
    eos: int | None  # ends an answer unless ignore_eos


def parse_generate(body: dict[str, Any], limits: Limits) -> Request:
    """The request of POST /inference/v1/generate."""
    params = body.get("sampling_params", {})
    if not isinstance(params, dict):
        raise BadRequest("sampling_params must be an object")
    return build_request(body.get("token_ids"), params, limits)


def build_request(token_ids: Any, params: dict[str, Any], limits: Limits) -> Request:
    """Checks token ids and sampling parameters; what is not supported is refused rather than ignored."""
    _check_tokens("token_ids", token_ids, limits)
    if not token_ids:
        raise BadRequest("token_ids must hold at least one token")
    for name, value in params.items():
        if name not in _KNOWN and (name not in _NEUTRAL or value not in _NEUTRAL[name]):
            raise BadRequest(f"sampling_params.{name}={value!r} is not supported")
    room = limits.max_len - len(token_ids)
    max_tokens = _number(params, "max_tokens", int, 16)
    if not 1 <= max_tokens <= room:
        raise BadRequest(
            f"{len(token_ids)} prompt tokens and max_tokens={max_tokens}: max_tokens must be at least 1 and both "
            f"together at most {limits.max_len}"
        )
    return Request(token_ids, _sampling(params, max_tokens, limits))


def _sampling(params: dict[str, Any], max_tokens: int, limits: Limits) -> SamplingParams:
    stop = params.get("stop_token_ids") or []
    _check_tokens("stop_token_ids", stop, limits)
    if limits.eos is not None and not params.get("ignore_eos", False):
        stop = [*stop, limits.eos]
    temperature = _number(params, "temperature", float, 1.0)
    top_p = _number(params, "top_p", float, 1.0)
    seed = params.get("seed")
    seed = secrets.randbits(64) if seed is None else _number(params, "seed", int, 0)
    if not 0 <= temperature < np.inf:
        raise BadRequest(f"temperature={temperature}: must be at least 0")
    if not 0 < top_p <= 1:
        raise BadRequest(f"top_p={top_p}: must be above 0 and at most 1")
    if not 0 <= seed < 2**64:
        raise BadRequest(f"seed={seed}: must be at least 0 and below 2**64")
    top_p = 1.0 if temperature == 0 else top_p  # a greedy choice has nothing to cut off
    routed = bool(params.get("return_routed_experts", False))
    return SamplingParams(max_tokens, seed, temperature, top_p, frozenset(stop), routed)


def _number(params: dict[str, Any], name: str, kind: type, default: Any) -> Any:
    value = params.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, kind)):
        raise BadRequest(f"{name}={value!r}: must be {'an integer' if kind is int else 'a number'}")
    return kind(value)


def _check_tokens(name: str, token_ids: Any, limits: Limits) -> None:
    good = isinstance(token_ids, list) and all(type(t) is int and 0 <= t < limits.vocab_size for t in token_ids)
    if not good:
        raise BadRequest(f"{name} must be a list of integers from 0 to {limits.vocab_size - 1}")


def generate_response(request: Request) -> dict[str, Any]:
    """The answer of /inference/v1/generate; spans count generated tokens, ``end`` exclusive."""
    choice = _choice(request.token_ids, request.logprobs, request.spans, request.finish_reason)
    if request.params.return_routed_experts:
        choice["routed_experts"] = _encode(request)
    return {"choices": [choice]}


def generate_chunk(chunk: Chunk) -> dict[str, Any]:
    """One event of a streamed answer: the new tokens only; its span counts from the answer's start."""
    span = Span(chunk.version, chunk.start, chunk.start + len(chunk.token_ids))
    return {"choices": [_choice(chunk.token_ids, chunk.logprobs, [span], chunk.finish_reason or None)]}


def _choice(token_ids: list[int], logprobs: list[float], spans: list[Span], finish: str | None) -> dict[str, Any]:
    content = [{"token_id": t, "logprob": p} for t, p in zip(token_ids, logprobs, strict=True)]
    return {
        "index": 0,
        "token_ids": token_ids,
        "finish_reason": finish,
        "logprobs": {"content": content},
        "weight_versions": [{"version": str(s.version), "start": s.start, "end": s.end} for s in spans],
    }


def _encode(request: Request) -> dict[str, Any]:
    """Experts of every processed token: int16 [prompt + generated - 1, L, K], little-endian, base64."""
    processed = len(request.prompt) + len(request.token_ids) - 1
    if request.routed_experts is None:  # aborted before its first step
        return {"data": "", "shape": [0, 0, 0]}
    routes = request.routed_experts[:processed].astype("<i2", copy=False)
    return {"data": base64.b64encode(routes.tobytes()).decode(), "shape": list(routes.shape)}
