"""Looks for changes on a mesh of fake devices and on one; run by test_published.py in a process of its own.

python published_run.py axis=size...: exits with an error unless both find the same.
"""

import sys

import jax
import numpy as np
import pytest

from intellect_jax.bridge.published import Published
from intellect_jax.config import default_config
from intellect_jax.errors import UserError
from intellect_jax.parallel.axes import AXES
from intellect_jax.parallel.mesh import make_mesh
from intellect_jax.trainer import setup
from intellect_jax.trainer.optimizer import make_optimizer
from tests.bridge.test_published import nudged
from tests.policies import SMALL, random_params


def main(axes: dict[str, int]) -> None:
    config = default_config()
    config.parallel.update(dict.fromkeys(AXES, 1) | axes)
    abstract = setup.abstract_state(SMALL, make_mesh(config.parallel), make_optimizer(config.trainer.optimizer))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract.params)
    old = random_params(SMALL, 0)
    new = nudged(old, 1e-5)
    right = Published(old, SMALL, "bfloat16").advance(new)
    in_parts = Published(jax.device_put(old, shardings), SMALL, "bfloat16")
    found = in_parts.advance(jax.device_put(new, shardings))
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(jax.device_put(new, shardings)))
    for one, other in zip(right, found, strict=True):
        assert (one.name, one.shape) == (other.name, other.shape)
        for a, b in zip(one.changes, other.changes, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=one.name)
    with pytest.raises(UserError, match="in parts on"):  # for NCCL one device must have all of it
        in_parts.lying()
    print(f"{sum(each.changes.where.size for each in found)} changes in {len(found)} tensors")


if __name__ == "__main__":
    main({k: int(v) for k, v in (a.split("=") for a in sys.argv[1:])})
