"""Where and how an optimizer's moments are kept between steps; both wrap any optax transformation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax


def is_moment(leaf: Any) -> bool:
    """Whether a leaf of an optimizer's state is an array of moments rather than a counter."""
    return leaf.ndim > 0 and jnp.issubdtype(leaf.dtype, jnp.floating)


def stored_as(dtype: jnp.dtype, inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """``inner`` computing in float32 with its moments rounded to ``dtype`` after every step.

    A moment stored in bfloat16 (8 bits) stands still when it should move by less than 1/512 of itself; see the rule on
    ``trainer.optimizer.moments_dtype``.
    """

    def init(params: Any) -> Any:
        return _cast(inner.init(params), dtype)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = inner.update(updates, _cast(state, jnp.dtype(jnp.float32)), params)
        return updates, _cast(state, dtype)

    return optax.GradientTransformation(init, update)


def on_host(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """``inner`` with its moments in host memory between steps; jit it with shardings that say so (see memory.py)."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        # Without the barrier the scheduler may fetch the state before the backward pass, when memory is scarcest.
        updates, state = jax.lax.optimization_barrier((updates, state))
        updates, state = inner.update(updates, _move(state, jax.memory.Space.Device), params)
        return updates, _move(state, jax.memory.Space.Host)

    return optax.GradientTransformation(inner.init, update)


def _cast(state: Any, dtype: jnp.dtype) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if is_moment(leaf) else leaf, state)


def _move(state: Any, space: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.device_put(leaf, space) if is_moment(leaf) else leaf, state)
