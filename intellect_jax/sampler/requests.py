"""A generation request on its way through the engine, and what comes back."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from intellect_jax.types import Version


@dataclass(frozen=True)
class SamplingParams:
    """``temperature`` 0 is greedy. ``seed`` (64 bits) and a token's absolute position determine its randomness."""

    max_tokens: int
    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop_token_ids: frozenset[int] = frozenset()
    return_routed_experts: bool = False


@dataclass
class Span:
    """Generated tokens [start, end) were sampled by ``version``."""

    version: Version
    start: int
    end: int


@dataclass(frozen=True)
class Chunk:
    """What one engine step added to a streamed request; ``finish_reason`` is empty until the last one."""

    token_ids: list[int]
    logprobs: list[float]
    version: Version
    start: int  # index of the first of these tokens among the generated ones
    finish_reason: str


@dataclass
class Request:
    """``prompt`` has at least one token. ``future`` resolves to this request once ``finish_reason`` is set; cancelling
    it makes the engine drop the request. ``on_chunk`` is called from the engine's thread and must not block.

    ``routed_experts``: int16 [processed tokens, L, K], there once the request has left the engine: all but the last of
    prompt and answer. None when not asked for, or when nothing was generated.
    """

    prompt: list[int]
    params: SamplingParams
    on_chunk: Callable[[Chunk], None] | None = None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    finish_reason: str = ""  # stop, length or abort
    routed_experts: np.ndarray | None = None
    future: Future[Request] = field(default_factory=Future)

    def history(self) -> list[int]:
        """Prompt and generated tokens."""
        return self.prompt + self.token_ids

    def extend(self, token_ids: list[int], logprobs: list[float], version: Version) -> int:
        """Takes sampled tokens up to a stop token or the budget, sets ``finish_reason``; returns how many it took."""
        start = len(self.token_ids)
        taken = min(len(token_ids), self.params.max_tokens - start)
        for i in range(taken):
            if token_ids[i] in self.params.stop_token_ids:
                taken, self.finish_reason = i + 1, "stop"
                break
        self.token_ids += token_ids[:taken]
        self.logprobs += logprobs[:taken]
        if not self.finish_reason and len(self.token_ids) == self.params.max_tokens:
            self.finish_reason = "length"
        self._stamp(version, start)
        if self.on_chunk:
            self.on_chunk(Chunk(self.token_ids[start:], self.logprobs[start:], version, start, self.finish_reason))
        return taken

    def _stamp(self, version: Version, start: int) -> None:
        if self.spans and self.spans[-1].version == version:
            self.spans[-1].end = len(self.token_ids)
        else:
            self.spans.append(Span(version, start, len(self.token_ids)))
