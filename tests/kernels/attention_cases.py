"""Packed rows and gradients for tests of attention."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Case(NamedTuple):
    q: jax.Array
    k: jax.Array
    v: jax.Array
    segment_ids: jax.Array
    positions: jax.Array

    @property
    def real(self) -> jax.Array:
        """1 on tokens that are not padding: the output of padding is free."""
        return (self.segment_ids > 0).astype(jnp.float32)[:, :, None, None]


def packed_case(rows, length, heads, kv_heads, width, segments, dtype=jnp.float32, seed=0) -> Case:
    """Rows of random segments; ``segments`` of 0 means rows of padding alone, else some padding ends each row."""
    rng = np.random.default_rng(seed)
    ids, positions = np.zeros((2, rows, length), np.int32)
    for row in range(rows if segments else 0):
        cuts = np.sort(rng.choice(np.arange(1, length + 1), segments, replace=False))
        for segment, (start, stop) in enumerate(zip([0, *cuts[:-1]], cuts, strict=True), 1):
            ids[row, start:stop], positions[row, start:stop] = segment, np.arange(stop - start)
    shapes = ((rows, length, n, width) for n in (heads, kv_heads, kv_heads))
    q, k, v = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
    return Case(q, k, v, jnp.asarray(ids), jnp.asarray(positions))


def output_and_gradients(function, case: Case):
    """(output, (dq, dk, dv)) of a loss that reads every number of the output but padding's, all float32."""

    def loss(q, k, v):
        out = function(q, k, v, case.segment_ids, case.positions).astype(jnp.float32) * case.real
        return jnp.sum(jnp.sin(3 * out)), out

    gradients, out = jax.grad(loss, (0, 1, 2), has_aux=True)(*case[:3])
    return jax.tree.map(lambda x: x.astype(jnp.float32), (out, gradients))


def assert_close(found, expected, tolerance: float) -> None:
    """Relative L2 of every array at most ``tolerance``; where all are 0 but for rounding, relative to 0.1 each."""
    for name, a, b in zip(("out", "dq", "dk", "dv"), jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.isfinite(a).all(), name
        error = np.linalg.norm(a - b) / max(np.linalg.norm(b), 0.1 * b.size**0.5)
        assert error <= tolerance, f"{name}: {error}"
