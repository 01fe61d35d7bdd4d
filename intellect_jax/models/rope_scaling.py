"""Rotation frequencies of RoPE and of its scalings for longer contexts; numpy only, computed once per compilation.

linear: positions divided by a factor (Chen et al., arXiv 2306.15595). llama3: long wavelengths stretched, short ones
kept, a smooth blend between (Llama 3.1). yarn: the same by parts, in entries of the head, and a temperature on the
attention (Peng et al., arXiv 2309.00071).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RopeScaling:
    """One ``rope_scaling`` of config.json, under its names; None: derived as :func:`frequencies` says."""

    rope_type: str  # one of KEYS, not default
    factor: float
    original_max_position_embeddings: int | None = None  # tokens; llama3 and yarn
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None


# rope_type → (keys that it needs, keys that it may have).
_ORIGINAL = "original_max_position_embeddings"
KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "llama3": (("factor", _ORIGINAL, "low_freq_factor", "high_freq_factor"), ()),
    "yarn": (
        ("factor", _ORIGINAL),
        ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
}


def frequencies(rotary_dim: int, theta: float, scaling: RopeScaling | None) -> tuple[np.ndarray, float]:
    """(radians per position, float32 [rotary_dim / 2]; factor on cos and sin)."""
    exponents = np.arange(0, rotary_dim, 2, dtype=np.float32) / np.float32(rotary_dim)
    plain = np.float32(1) / np.float32(theta) ** exponents
    if scaling is None:
        return plain, 1.0
    stretched = plain / np.float32(scaling.factor)
    if scaling.rope_type == "linear":
        return stretched, 1.0
    if scaling.rope_type == "llama3":
        kept, temperature = _llama3_kept(plain, scaling), 1.0
    else:
        kept, temperature = _yarn_kept(rotary_dim, theta, scaling), _yarn_temperature(scaling)
    return (stretched + kept * (plain - stretched)).astype(np.float32), temperature


def _llama3_kept(plain: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """How much of each plain frequency stays: 1 for those that turn often within the original context, 0 for rarely."""
    low, high, length = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_max_position_embeddings
    assert low is not None and high is not None and length is not None
    turns = length * plain.astype(np.float64) / (2 * math.pi)
    return np.clip((turns - low) / (high - low), 0, 1)


def _yarn_kept(rotary_dim: int, theta: float, scaling: RopeScaling) -> np.ndarray:
    """As in :func:`_llama3_kept`, a ramp over the index of the frequency from beta_fast to beta_slow turns."""
    length = scaling.original_max_position_embeddings
    assert length is not None

    def index_of(turns: float) -> float:
        return rotary_dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = index_of(scaling.beta_fast or 32), index_of(scaling.beta_slow or 1)
    if scaling.truncate is not False:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rotary_dim - 1)
    width = last - first or 0.001
    return 1 - np.clip((np.arange(rotary_dim // 2) - first) / width, 0, 1)


def _yarn_temperature(scaling: RopeScaling) -> float:
    if scaling.attention_factor is not None:
        return scaling.attention_factor

    def at(scale: float) -> float:
        return 0.1 * scale * math.log(scaling.factor) + 1 if scaling.factor > 1 else 1.0

    if scaling.mscale and scaling.mscale_all_dim:
        return at(scaling.mscale) / at(scaling.mscale_all_dim)
    return at(1.0)
