"""What a sampler answered, checked strictly: a generation that fails any check is never trained on."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from intellect_jax.types import Version

NO_VERSION = "default"  # how vLLM calls the weights that it was started with, which nobody published


class BadGeneration(Exception):
    """The answer contradicts itself or the request."""


@dataclass(frozen=True)
class Generation:
    """``logprobs`` (natural log, at the sampling temperature) and ``versions`` run along ``token_ids``.

    ``routed_experts``: int16 [prompt + generated - 1, L, K], the experts of every token that was processed (the last
    one was not); L are the MoE layers, or all layers where ``of_all_layers``: vLLM names them all. None when not asked
    for, or when vLLM's are of another number of tokens.
    """

    token_ids: list[int]
    logprobs: list[float]
    versions: list[int]
    lineage: int
    finish_reason: str  # stop or length
    routed_experts: np.ndarray | None = None
    of_all_layers: bool = False


def lacks_weights(answer: dict[str, Any]) -> bool:
    """Whether a server answered that has not been given a version yet: vLLM does not mind."""
    spans = [span for choice in answer.get("choices") or [] for span in choice.get("weight_versions") or []]
    return any(span.get("version") == NO_VERSION for span in spans)


def was_aborted(answer: dict[str, Any]) -> bool:
    """Whether the server gave the request up, as one does that is told to end."""
    return any(choice.get("finish_reason") == "abort" for choice in answer.get("choices") or [])


def parse_generation(answer: dict[str, Any], prompt_length: int, sampling_params: dict[str, Any]) -> Generation:
    """The only choice of an answer of /inference/v1/generate; raises BadGeneration."""
    try:
        (choice,) = answer["choices"]
        token_ids, content = choice["token_ids"], choice["logprobs"]["content"]
        logprobs = [float(entry["logprob"]) for entry in content]
        named = [entry["token_id"] for entry in content]
        spans = [(Version.parse(s["version"]), s["start"], s["end"]) for s in choice["weight_versions"]]
        finish = choice["finish_reason"]
    except (KeyError, TypeError, ValueError) as error:
        raise BadGeneration(f"malformed answer: {error!r}") from error
    _check_tokens(token_ids, named, logprobs, finish, sampling_params)
    lineage, versions = _token_versions(spans, len(token_ids))
    routed, processed, vllms = None, prompt_length + len(token_ids) - 1, isinstance(choice.get("routed_experts"), str)
    if vllms:
        routed = _vllms_experts(choice["routed_experts"], processed)
    elif sampling_params.get("return_routed_experts"):
        routed = _routed_experts(choice, processed)
    return Generation(token_ids, logprobs, versions, lineage, finish, routed, vllms)


def _check_tokens(
    token_ids: list[int], named: list[int], logprobs: list[float], finish: str, params: dict[str, Any]
) -> None:
    if finish not in ("stop", "length"):
        raise BadGeneration(f"finish_reason is {finish!r}")
    if not 1 <= len(token_ids) <= params.get("max_tokens", math.inf):
        raise BadGeneration(f"{len(token_ids)} tokens, max_tokens is {params.get('max_tokens')}")
    if named != token_ids:
        raise BadGeneration("log-probabilities are of other tokens than those generated")
    bad = [p for p in logprobs if not (math.isfinite(p) and p <= 0)]
    if bad:
        raise BadGeneration(f"log-probability {bad[0]}: must be finite and at most 0")


def _token_versions(spans: list[tuple[Version, int, int]], count: int) -> tuple[int, list[int]]:
    """Lineage, and the version number of each token; spans must cover the tokens exactly, in order."""
    versions: list[int] = []
    for version, start, end in spans:
        if start != len(versions) or end <= start:
            raise BadGeneration(f"weight_versions do not tile the tokens: {_shown(spans)}")
        versions += [version.number] * (end - start)
    if len(versions) != count:
        raise BadGeneration(f"weight_versions cover {len(versions)} of {count} tokens: {_shown(spans)}")
    lineages = {version.lineage for version, _, _ in spans}
    if len(lineages) != 1:
        raise BadGeneration(f"one generation spans several lineages: {_shown(spans)}")
    return lineages.pop(), versions


def _shown(spans: list[tuple[Version, int, int]]) -> str:
    return ", ".join(f"{version} [{start}, {end})" for version, start, end in spans)


def _routed_experts(choice: dict[str, Any], tokens: int) -> np.ndarray:
    try:
        data, shape = choice["routed_experts"]["data"], choice["routed_experts"]["shape"]
        routed = np.frombuffer(base64.b64decode(data), "<i2").reshape(shape)
    except (KeyError, TypeError, ValueError) as error:
        raise BadGeneration(f"malformed routed_experts: {error!r}") from error
    if routed.ndim != 3 or routed.shape[0] != tokens or (routed < 0).any():
        raise BadGeneration(f"routed_experts of shape {routed.shape} for {tokens} processed tokens")
    return routed.astype(np.int16)


def _vllms_experts(text: str, tokens: int) -> np.ndarray | None:
    """Of vLLM's .npy in base64, uint8 or uint16. None where they do not belong to these tokens one by one."""
    try:
        routed = np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise BadGeneration(f"malformed routed_experts: {error!r}") from error
    if routed.ndim != 3 or routed.dtype.kind not in "iu":
        raise BadGeneration(f"routed_experts of shape {routed.shape}, {routed.dtype}")
    return routed.astype(np.int16) if routed.shape[0] == tokens else None
