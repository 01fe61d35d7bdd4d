"""Which expert goes with the errors. Pure NumPy.

An expert that the sampler has wrong changes the tokens predicted through it and, through attention, later ones of their
segment; where it was not visited nothing changes. Silencing its own expert shows the trainer the same pattern: this
moves those tokens that anything about the expert moves. Correlation with the errors tells which expert it is.

Shape suffixes: R rows, S tokens of a row, N compared tokens, L MoE layers, K experts per token, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from intellect_jax.trainer.guard.comparison import Comparison, capped

CANDIDATES = 64  # experts that are silenced, one forward pass each


@dataclass(frozen=True)
class ExpertError:
    """``inside``, ``outside``: mean capped |Δ| of tokens predicted through this expert, and of all others, in nats."""

    layer: int  # index among the MoE layers
    expert: int
    tokens: int
    inside: float
    outside: float
    correlation: float  # of the roots of errors and of what silencing the expert changes; 0.1 is chance


def ranked_experts(seen: Comparison, silenced: Callable[[int, int], np.ndarray]) -> list[ExpertError]:
    """The experts that go best with the errors, the best first; [] without experts.

    ``silenced(layer, expert)``: the trainer's log-probabilities [R, S] without what that expert says.
    """
    errors_N = seen.errors()
    routed_NLK = np.roll(seen.routed, 1, axis=1)[seen.compared]
    if not routed_NLK.size:
        return []
    found = []
    for layer, expert in candidates(errors_N, routed_NLK)[:CANDIDATES]:
        moved_N = capped((silenced(layer, expert) - seen.trainer)[seen.compared])
        inside = (routed_NLK[:, layer] == expert).any(axis=-1)
        near, far = (float(errors_N[group].mean()) if group.any() else 0.0 for group in (inside, ~inside))
        found.append(ExpertError(layer, expert, int(inside.sum()), near, far, correlation(errors_N, moved_N)))
    return sorted(found, key=lambda each: -each.correlation)


def candidates(errors_N: np.ndarray, routed_NLK: np.ndarray) -> list[tuple[int, int]]:
    """(layer, expert) of all that some compared token visited, those with the largest errors first.

    Largest in standard errors of the mean, so that neither rare nor common experts come first by chance.
    """
    count = int(routed_NLK.max()) + 1
    found: list[tuple[float, int, int]] = []
    for layer in range(routed_NLK.shape[1]):
        visited_NE = np.zeros((len(errors_N), max(count, 1)), bool)
        known_NK = routed_NLK[:, layer] >= 0
        visited_NE[np.nonzero(known_NK)[0], routed_NLK[:, layer][known_NK]] = True
        total_E = visited_NE.sum(axis=0)
        surplus_E = (errors_N - errors_N.mean()) @ visited_NE / np.sqrt(np.maximum(total_E, 1))
        found += [(-float(surplus_E[e]), layer, int(e)) for e in np.nonzero(total_E)[0]]
    return [(layer, expert) for _, layer, expert in sorted(found)]


def correlation(a_N: np.ndarray, b_N: np.ndarray) -> float:
    """Pearson's, of the square roots: a few large errors shall not decide. 0 where one of them is constant."""
    a_N, b_N = np.sqrt(a_N), np.sqrt(b_N)
    spread = float(a_N.std() * b_N.std())
    return float(((a_N - a_N.mean()) * (b_N - b_N.mean())).mean()) / spread if spread > 1e-12 else 0.0
