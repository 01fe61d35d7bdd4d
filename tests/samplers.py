"""A real engine with a tiny policy, a real server on a real port, and what they must agree with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from intellect_jax.config import default_config
from intellect_jax.models import transformer
from intellect_jax.sampler import loading, server
from intellect_jax.sampler.main import make_state
from intellect_jax.sampler.requests import Request, SamplingParams
from intellect_jax.sampler.state import ServerState
from intellect_jax.types import Version
from launch.addresses import free_ports
from tests.policies import SMALL, random_params

MAX_LEN = 256
V0 = Version(0, 0)


def sampler_config(**sampler: Any):
    """A configuration for the SMALL policy, float32, on a free port; arguments override the ``sampler`` section."""
    config = default_config()
    config.sampler.update({"slots": 8, "max_len": MAX_LEN, "prefill_buckets": (32, MAX_LEN), "prefill_rows": 4})
    config.sampler.update({"dtype": "float32", "request_timeout": 60.0, **sampler})
    config.launch.start_timeout = 2.0  # how long the fleet client waits for servers that are gone
    config.sampler.urls = (f"http://127.0.0.1:{free_ports(1)[0]}",)
    return config


@contextmanager
def running(config, tokenizer: Any = None) -> Iterator[ServerState]:
    """A started engine without weights."""
    state = make_state(config, SMALL, tokenizer)
    state.engine.start()
    try:
        assert state.engine.ready.wait(280), state.engine.failure
        yield state
    finally:
        assert state.engine.stop(timeout=10)


@asynccontextmanager
async def serving(state: ServerState, url: str) -> AsyncIterator[str]:
    """The HTTP server in front of a started engine."""
    runner = await server.start(server.make_app(state), "127.0.0.1", int(url.rsplit(":", 1)[1]))
    try:
        yield url
    finally:
        await runner.cleanup()


def install(state: ServerState, seed: int, version: Version = V0) -> None:
    """Makes ``random_params(SMALL, seed)`` the policy."""
    state.engine.install(loading.place(random_params(SMALL, seed), "float32"), version).result(30)


def request(prompt: list[int], max_tokens: int = 8, seed: int = 0, **params: Any) -> Request:
    return Request(prompt, SamplingParams(max_tokens, seed, **params))


def generate(state: ServerState, *requests: Request) -> list[Request]:
    """Submits all and waits for all."""
    for each in requests:
        state.engine.submit(each)
    return [each.future.result(60) for each in requests]


@jax.jit
def _forward(params, tokens, length):
    positions = jnp.arange(len(tokens))[None]
    segments = (positions < length).astype(jnp.int32)
    out = transformer.forward(params, SMALL, tokens[None], positions, segments, compute_dtype=jnp.float32)
    return transformer.logits(params, SMALL, out.hidden)[0], out.routed_experts[0]


def teacher_forced(params, token_ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Logits [T, V] and experts int16 [T, L, K] of one whole sequence in one forward pass."""
    padded = np.zeros(-(-len(token_ids) // MAX_LEN) * MAX_LEN, np.int32)
    padded[: len(token_ids)] = token_ids
    logits, routes = _forward(params, padded, len(token_ids))
    return np.asarray(logits)[: len(token_ids)], np.asarray(routes)[: len(token_ids)]


def expected_logprobs(params, prompt: list[int], token_ids: list[int], temperature: float = 1.0) -> np.ndarray:
    """log_softmax(logits / temperature) of each generated token, in float64 from float32 logits."""
    logits, _ = teacher_forced(params, prompt + token_ids)
    scaled = logits[len(prompt) - 1 : -1].astype(np.float64) / temperature
    logprobs = scaled - np.logaddexp.reduce(scaled, axis=-1, keepdims=True)
    return logprobs[np.arange(len(token_ids)), token_ids]
