"""Why log-probabilities may differ: one function a cause, each with evidence from the microbatch at hand.

A cause ``explains`` the share of the error that goes away when it is assumed: by computing again at another
temperature or with an older version's weights, by comparing with the neighbouring token, or by looking only at tokens
that the cause cannot have touched. Of an expert it is how well the errors follow what the expert does (routing.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from intellect_jax.trainer.guard.comparison import CAP, Comparison
from intellect_jax.trainer.guard.routing import ranked_experts
from intellect_jax.types import Version

log = logging.getLogger(__name__)

CONVINCING = 0.3  # what a cause must explain to be named as a likely one
SIGNIFICANT = 4.0  # standard errors between two means
FEW = 8  # tokens below which a mean says nothing
FACTORS = tuple(2.0 ** (step / 4) for step in range(-8, 9))  # on the temperature, from a quarter to four times


@dataclass(frozen=True)
class Suspect:
    """``explains``: 0 to 1, by which suspects are ranked."""

    name: str
    explains: float
    evidence: str
    advice: str


@dataclass(frozen=True)
class Again:
    """The trainer's log-probabilities [R, S] of the same microbatch under another assumption."""

    at: Callable[[float], np.ndarray]  # every temperature times a factor
    under: Callable[[Version], np.ndarray]  # all weights those of a published version, as the sampler read them
    with_experts_of: Callable[[Version], np.ndarray]  # the trainer's weights, but the routed experts of that version
    silenced: Callable[[int, int], np.ndarray]  # one expert (index of the MoE layer, of the expert) says nothing
    published: tuple[Version, ...] = ()  # on disk, newest first, the trainer's own among them


@dataclass(frozen=True)
class Circumstances:
    """What is known besides the microbatch."""

    version: Version  # the trainer's
    bound: float  # nats
    passed: tuple[int, ...]  # steps before which the guard found nothing, in this start of the trainer
    vocabulary: int  # ids that the tokenizer has
    dtypes: dict[str, str]  # who computes or stores what in which dtype
    moe_layers: tuple[int, ...] = ()  # numbers of the layers with experts, from 0


def suspects(seen: Comparison, again: Again, known: Circumstances) -> list[Suspect]:
    """Every cause for which there is evidence, likeliest first; at least one."""
    found: list[Suspect] = []
    for look in (temperature, alignment, versions, packed_experts, experts, cache_over_update, decoding, vocabulary):
        try:
            found += look(seen, again, known)
        except Exception:  # out of memory, a version that is gone: the other causes are still worth a look
            log.exception("guard: %s could not be looked at", look.__name__)
    found += [_beginnings(seen), _numerics(seen, known)]
    return sorted(found, key=lambda suspect: -suspect.explains)


def _share(before: float, after: float) -> float:
    return max(0.0, 1.0 - after / before) if before > 0 else 0.0


def temperature(seen: Comparison, again: Again, known: Circumstances) -> Iterator[Suspect]:
    """Whether the error goes away at another temperature, which a grid and then a finer one around its best finds."""
    configured = float(np.median(seen.temperature[seen.compared]))
    tried = {factor: seen.error(again.at(factor)) for factor in (*FACTORS, 1.0 / configured)}
    width = FACTORS[1]
    for _ in range(4):  # halves what is left of the factor's uncertainty each time, to 1%
        best, width = min(tried, key=tried.__getitem__), width**0.5
        tried |= {factor: seen.error(again.at(factor)) for factor in (best / width, best * width)}
    best = min(tried, key=tried.__getitem__)
    explains = _share(seen.error(), tried[best])
    if explains >= CONVINCING and abs(best - 1) > 0.01:
        yield Suspect(
            "temperature",
            explains,
            f"at temperature {best * configured:.3g} instead of {configured:.3g} the mean error falls from "
            f"{seen.error():.2g} to {tried[best]:.2g}",
            "the server must sample and report at the temperature that it is asked for (vLLM: "
            "--logprobs-mode=processed_logprobs; raw ones are those of temperature 1)",
        )


def alignment(seen: Comparison, again: Again, known: Circumstances) -> Iterator[Suspect]:
    """Whether the sampler's numbers are those of the token before or after."""
    for shift in (1, -1):
        neighbour, segment = np.roll(seen.trainer, -shift, axis=1), np.roll(seen.segments, -shift, axis=1)
        both = seen.restricted(np.roll(seen.compared, -shift, axis=1) & (segment == seen.segments))
        if both.compared.sum() < FEW:
            continue
        explains = _share(both.error(), both.error(neighbour))
        if explains >= CONVINCING:
            which = "after" if shift == 1 else "before"
            yield Suspect(
                "alignment",
                explains,
                f"the sampler's numbers are those of the token {which}: compared so, the mean error falls from "
                f"{both.error():.2g} to {both.error(neighbour):.2g}",
                "tokens and log-probabilities of an answer are shifted against each other by one: look at the server's "
                "answer and at what reads it",
            )


def versions(seen: Comparison, again: Again, known: Circumstances) -> Iterator[Suspect]:
    """Whether the tokens are of other weights than those that they name."""
    for version in again.published:
        explains = _share(seen.error(), seen.error(again.under(version)))
        if explains < CONVINCING:
            continue
        if version == known.version:
            yield Suspect(
                "publishing",
                explains,
                f"what is on disk as version {version} gives the sampler's numbers, what the trainer holds does not",
                "the published files are not the trainer's weights: look at weights.dtype first, then report it",
            )
        else:
            yield Suspect(
                "stale weights",
                explains,
                f"under the weights of version {version} the mean error is {seen.error(again.under(version)):.2g}; the "
                f"tokens name version {known.version}",
                "the server says that it took a version and goes on with an older one: look at its update in the "
                "sampler's log",
            )


def packed_experts(seen: Comparison, again: Again, known: Circumstances) -> Iterator[Suspect]:
    """Whether the routed experts alone are those of an earlier version."""
    for version in (v for v in again.published if v != known.version and seen.routed.shape[2]):
        explains = _share(seen.error(), seen.error(again.with_experts_of(version)))
        if explains >= CONVINCING:
            yield Suspect(
                "experts not repacked",
                explains,
                f"with the routed experts of version {version} and all else of {known.version} the mean error is "
                f"{seen.error(again.with_experts_of(version)):.2g}",
                "the server packs its experts when it starts and not at an update: it must pack them anew each time",
            )


def experts(seen: Comparison, again: Again, known: Circumstances) -> Iterator[Suspect]:
    """Whether the errors lie where one expert is heard."""
    found = [each for each in ranked_experts(seen, again.silenced) if each.correlation >= CONVINCING]
    if not found:
        return
    first = found[0]
    names = [f"layer {known.moe_layers[e.layer]} expert {e.expert} ({e.correlation:.0%})" for e in found[1:4]]
    also = f"; next: {', '.join(names)}" if names else ""
    yield Suspect(
        "experts",
        first.correlation,
        f"layer {known.moe_layers[first.layer]}, expert {first.expert}: the errors lie where it is heard; the "
        f"{first.tokens} tokens predicted through it are off by {first.inside:.2g} on average, the others by "
        f"{first.outside:.2g}{also}",
        "the server's weights of that expert are not the published ones: wrong order when experts are packed, or not "
        "packed again after an update",
    )


def cache_over_update(seen: Comparison, again: Again, known: Circumstances) -> Iterator[Suspect]:
    """Whether only rollouts that an update ran through are off."""
    yield from _two_groups(
        seen,
        seen.in_mixed_segment(),
        "stale cache",
        "tokens after an update within their rollout are off by {inside:.2g} on average, those of rollouts that saw "
        "none by {outside:.2g}",
        "the server kept keys and values of the old weights: it must compute them again at an update, and forget its "
        "prefix cache (sampler.on_update)",
    )


def decoding(seen: Comparison, again: Again, known: Circumstances) -> Iterator[Suspect]:
    """Whether answers begin right and go wrong after their first token."""
    yield from _two_groups(
        seen,
        ~seen.first_in_segment(),
        "decoding",
        "the first token of an answer, which prefill predicts, is off by {outside:.2g} on average, those that follow "
        "by {inside:.2g}",
        "prefill agrees and decoding does not: the server's cache or its positions are wrong",
    )


def _two_groups(seen: Comparison, inside: np.ndarray, name: str, evidence: str, advice: str) -> Iterator[Suspect]:
    errors = seen.errors()
    if min(inside.sum(), (~inside).sum()) < FEW:
        return
    means = {"inside": float(errors[inside].mean()), "outside": float(errors[~inside].mean())}
    explains = _share(means["inside"], means["outside"])
    chance = float(errors.std()) * (1 / inside.sum() + 1 / (~inside).sum()) ** 0.5  # standard error of the difference
    # Where the two groups are of different contents, half is chance too.
    if explains >= 0.5 and means["inside"] - means["outside"] > SIGNIFICANT * chance:
        yield Suspect(name, explains, evidence.format(**means), advice)


def vocabulary(seen: Comparison, again: Again, known: Circumstances) -> Iterator[Suspect]:
    """Whether the sampler writes tokens that the tokenizer does not have."""
    beyond = seen.tokens[seen.compared] >= known.vocabulary
    if beyond.any():
        yield Suspect(
            "tokenizer",
            float(max(beyond.mean(), CONVINCING)),
            f"{beyond.sum()} of {beyond.size} tokens have ids of {known.vocabulary} or more, which the run's tokenizer "
            "does not have",
            "server and run use different tokenizers: both must load <run>/tokenizer",
        )


def _beginnings(seen: Comparison) -> Suspect:
    """How answers begin says little by itself, so it never ranks above what explains something; and another prompt
    makes large errors."""
    first = seen.errors()[seen.first_in_segment()]
    share = float((first > seen.error() / 2).mean()) if first.size else 0.0
    return Suspect(
        "tokenizer or prompt",
        0.2 * share * seen.error() / CAP,
        f"{share:.0%} of {first.size} answers are off from their first token on",
        "the server may have read another prompt than the trainer: tokenizer, chat template, tokens that it adds",
    )


def _numerics(seen: Comparison, known: Circumstances) -> Suspect:
    """What is left. A small error with different dtypes is likelier this than a large one with equal dtypes."""
    differ = len({known.dtypes[name] for name in ("trainer", "sampler", "weights")}) > 1
    near = seen.error() < 10 * known.bound
    listed = ", ".join(f"{name} {dtype}" for name, dtype in known.dtypes.items())
    return Suspect(
        "numerics",
        0.25 if differ and near else 0.1 if near else 0.02,
        f"{listed}" + ("" if differ else ": nothing that the configuration knows differs"),
        "give model.compute_dtype, sampler.dtype and weights.dtype the same value; if the noise is known, raise "
        "guard.max_error",
    )
