"""The order of tokens in which N devices that share a row have equal causal work.

The row is cut into 2N pieces; device i holds pieces i and 2N-1-i, an early one that sees little and a late one.
Sources: Zhu, ring-flash-attention (2024); Llama Team, "The Llama 3 Herd of Models" (2024), section 3.3.2.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Array, Shaped


def shuffle(x: Shaped[Array, "b s ..."], shards: int) -> Shaped[Array, "b s ..."]:
    """From the order of a row to that in which its N equal parts lie on the devices.

    Raises:
        ValueError: 2N does not divide S.
    """
    return _reorder(x, _pieces(shards))


def unshuffle(x: Shaped[Array, "b s ..."], shards: int) -> Shaped[Array, "b s ..."]:
    """The inverse of :func:`shuffle`."""
    return _reorder(x, np.argsort(_pieces(shards)))


def _pieces(shards: int) -> np.ndarray:
    """Which piece lies at each place: 0, 2N-1, 1, 2N-2, ..."""
    first = np.arange(shards)
    return np.stack([first, 2 * shards - 1 - first], axis=1).reshape(-1)


def _reorder(x: Array, order: np.ndarray) -> Array:
    b, s, *rest = x.shape
    if s % len(order):
        raise ValueError(f"a row of {s} tokens cannot be cut into {len(order)} equal pieces")
    return x.reshape(b, len(order), s // len(order), *rest)[:, order].reshape(x.shape)
