"""Tiled copies equal numpy's, whatever the order of axes, shapes and dtypes."""

import itertools

import ml_dtypes
import numpy as np
import pytest

from intellect_jax.bridge.transpose import TILE, assign

BF16 = np.dtype(ml_dtypes.bfloat16)


@pytest.mark.parametrize("dtypes", list(itertools.product((BF16, np.dtype(np.float32)), repeat=2)), ids=str)
@pytest.mark.parametrize("shape", [(), (5,), (3, 1), (0, 4), (2 * TILE + 3, TILE - 5), (7, 5, 3), (1, 300, 2)])
def test_equals_plain_assignment(shape, dtypes):
    rng = np.random.default_rng(0)
    for source_order, target_order in itertools.product(itertools.permutations(range(len(shape))), repeat=2):
        source = in_order(shape, source_order, dtypes[0])
        source[...] = rng.normal(size=shape)
        target = in_order(shape, target_order, dtypes[1])
        assign(target, source)
        np.testing.assert_array_equal(target, source.astype(dtypes[1]))


def in_order(shape, order, dtype):
    """An array whose axes lie in memory in this order, slowest first."""
    return np.zeros([shape[i] for i in order], dtype).transpose(np.argsort(order).astype(int))


def test_slices_of_larger_arrays():
    source = np.arange(600 * 700, dtype=np.uint16).reshape(600, 700)
    target = np.zeros((800, 900), np.uint16)
    assign(target[10:600, 5:590], source[3:588, 7:597].T)
    np.testing.assert_array_equal(target[10:600, 5:590], source[3:588, 7:597].T)
    assert not target[:10].any() and not target[:, :5].any() and not target[600:].any() and not target[:, 590:].any()


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 3\) to shape \(3, 2\)"):
        assign(np.zeros((3, 2)), np.zeros((2, 3)))
