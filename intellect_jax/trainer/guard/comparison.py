"""One microbatch as trainer and sampler see it: how far their log-probabilities are apart, and where. Pure NumPy.

Shape suffixes: R rows, S tokens of a row, N compared tokens, L MoE layers, K experts per token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

CAP = 1.0  # nats: no token counts for more, so that a few outliers of bfloat16 do not make a mean


@dataclass(frozen=True)
class Comparison:
    """Arrays [R, S]; entry t speaks of predicting ``tokens[t]`` from what its segment has before it.

    Invariant: ``compared`` tokens were written by the version whose weights the trainer holds, are never the first of
    their segment, and have both log-probabilities; elsewhere ``trainer`` is 0.
    """

    tokens: np.ndarray  # int32
    positions: np.ndarray  # int32
    segments: np.ndarray  # int32, 0 is padding
    staleness: np.ndarray  # int32, -1 where the policy wrote nothing
    temperature: np.ndarray  # float32
    sampler: np.ndarray  # float32, nats
    trainer: np.ndarray  # float32, nats
    compared: np.ndarray  # bool
    routed: np.ndarray  # int16 [R, S, L, K]: experts that the trainer used for each token

    def errors(self, trainer: np.ndarray | None = None) -> np.ndarray:
        """|Δ| of the compared tokens, capped, [N]; with other log-probabilities of the trainer's if given."""
        ours = self.trainer if trainer is None else trainer
        return capped(ours[self.compared] - self.sampler[self.compared])

    def error(self, trainer: np.ndarray | None = None) -> float:
        """The mean of :meth:`errors`, in nats; 0 where no token is compared."""
        errors = self.errors(trainer)
        return float(errors.mean()) if errors.size else 0.0

    def largest(self) -> float:
        """The largest |Δ|, not capped; infinity where a number is not finite."""
        delta = np.abs(self.trainer - self.sampler)[self.compared]
        return float(np.where(np.isfinite(delta), delta, np.inf).max(initial=0.0))

    def first_in_segment(self) -> np.ndarray:
        """Which compared tokens [N] are the first of their segment that the policy wrote: prefill predicted them."""
        before = np.roll(self.staleness, 1, axis=1)
        return (before < 0)[self.compared]

    def in_mixed_segment(self) -> np.ndarray:
        """Which compared tokens [N] follow, in their segment, tokens of an older version."""
        return mixed(self.segments, self.staleness)[self.compared]

    def worst(self, count: int) -> list[tuple[int, int]]:
        """(row, column) of the compared tokens that are furthest apart, the worst first."""
        delta = np.abs(self.trainer - self.sampler)
        delta = np.where(self.compared, np.where(np.isfinite(delta), delta, np.inf), -1.0)
        order = np.argsort(-delta, axis=None, kind="stable")[: min(count, int(self.compared.sum()))]
        return [(int(i) // delta.shape[1], int(i) % delta.shape[1]) for i in order]

    def restricted(self, keep: np.ndarray) -> Comparison:
        """The same over fewer tokens: those compared ones where ``keep`` [R, S] is set."""
        return replace(self, compared=self.compared & keep)


def capped(delta: np.ndarray) -> np.ndarray:
    """|Δ|, at most CAP; what is not finite counts as CAP."""
    return np.where(np.isfinite(delta), np.minimum(np.abs(delta), CAP), CAP)


def mixed(segments: np.ndarray, staleness: np.ndarray) -> np.ndarray:
    """Bool [..., R, S]: tokens whose segment holds tokens of several versions."""
    least, most = _lags(segments, staleness)
    return most > least


def _lags(segments: np.ndarray, staleness: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each token [..., R, S] the least and the largest staleness in its segment, over what the policy wrote."""
    flat, lags = segments.reshape(-1, segments.shape[-1]), staleness.reshape(-1, segments.shape[-1])
    rows = np.broadcast_to(np.arange(len(flat))[:, None], flat.shape)
    most = np.full((len(flat), flat.max(initial=0) + 1), -1)
    least = np.full_like(most, np.iinfo(most.dtype).max)
    written = lags >= 0
    np.maximum.at(most, (rows[written], flat[written]), lags[written])
    np.minimum.at(least, (rows[written], flat[written]), lags[written])
    return least[rows, flat].reshape(segments.shape), most[rows, flat].reshape(segments.shape)


def settled(arrays: dict[str, np.ndarray], kept_cache: bool) -> np.ndarray:
    """Bool [..., R, S]: tokens of the loss on which both sides must agree under the version that wrote them.

    Those of the version that their segment ends under: at an update the sampler computes a running request again, and
    then has the experts of all its tokens from the new weights, which the trainer replays. ``kept_cache``: its cache
    survives an update, by choice (``sampler.on_update="keep_kv"``), so that only segments of one version are exact.
    """
    least, most = _lags(arrays["segment_ids"], arrays["staleness"])
    last = arrays["loss_mask"] & (arrays["staleness"] == least)
    return last & (least == most) if kept_cache else last
