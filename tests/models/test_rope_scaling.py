"""Frequencies of scaled RoPE: known values, and every branch taken by the configs that are compared elsewhere."""

import math

import numpy as np

from intellect_jax.models.rope_scaling import RopeScaling, frequencies
from tests.policies import LLAMA3, YARN


def kept(scaling, dim=12, theta=1e4):
    """Share of each plain frequency that stays: 1 unscaled, 0 divided by the factor."""
    plain, scaled = frequencies(dim, theta, None)[0], frequencies(dim, theta, scaling)[0]
    return (scaled / plain - 1 / scaling.factor) / (1 - 1 / scaling.factor)


def test_linear_divides_every_frequency():
    plain, factor = frequencies(8, 100.0, None)
    np.testing.assert_allclose(plain, [1, 100**-0.25, 0.1, 100**-0.75], rtol=1e-6)
    scaled, factor = frequencies(8, 100.0, RopeScaling("linear", 4.0))
    np.testing.assert_allclose(scaled, plain / 4, rtol=1e-6)
    assert factor == 1


def test_llama3_and_yarn_keep_blend_and_stretch():
    for scaling in (LLAMA3, YARN):
        share = kept(scaling)
        assert share[0] > 0.999 and abs(share[-1]) < 1e-5
        assert np.any((share > 0.01) & (share < 0.99))


def test_llama3_blends_by_turns_within_the_original_context():
    turns = 64 * frequencies(12, 1e4, None)[0] / (2 * math.pi)
    np.testing.assert_allclose(kept(LLAMA3), np.clip((turns - 1) / 3, 0, 1), atol=1e-5)


def test_yarn_temperature():
    assert frequencies(12, 1e4, RopeScaling("yarn", 4.0, 64))[1] == 0.1 * math.log(4) + 1
    assert frequencies(12, 1e4, RopeScaling("yarn", 4.0, 64, attention_factor=1.3))[1] == 1.3
    assert frequencies(12, 1e4, YARN)[1] == (0.1 * math.log(4) + 1) / (0.05 * math.log(4) + 1)
