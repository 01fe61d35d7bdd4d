"""What a sampler computes with: the version's tensors in its dtype, its router in float32."""

import jax
import numpy as np
import pytest

from intellect_jax.bridge.huggingface import from_hf, to_hf
from intellect_jax.sampler import loading
from tests.policies import SMALL, random_params


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_tensors_come_in_the_samplers_dtype_and_the_router_as_it_was_published(stored):
    tensors = dict(to_hf(random_params(SMALL, 0), SMALL, stored))
    placed = loading.placed(tensors, SMALL, "bfloat16")
    right = loading.place(from_hf(tensors.__getitem__, tensors, SMALL), "bfloat16")  # in float32 first
    jax.tree.map(np.testing.assert_array_equal, placed, right)
    assert jax.tree.map(lambda x: x.dtype, placed) == jax.tree.map(lambda x: x.dtype, right)
    of = {jax.tree_util.keystr(path): x.dtype.name for path, x in jax.tree_util.tree_leaves_with_path(placed)}
    assert {name for name, dtype in of.items() if dtype == "float32"} == {name for name in of if "router" in name}
