"""Muon (Jordan, https://kellerjordan.github.io/posts/muon/): momentum, of which each matrix is made orthogonal.

    M_t = momentum · M_{t-1} + G_t,    O_t = NewtonSchulz(G_t + momentum · M_t)  (Nesterov; else of M_t)
    W_t = W_{t-1} - rate · (0.2 · sqrt(max(rows, columns)) · O_t + decay · W_{t-1})

The factor (Moonlight, arXiv 2502.16982, section 2.2) gives O_t, whose root mean square is 1 / sqrt(max(rows, columns)),
that of AdamW's usual step: AdamW's rates and decays fit Muon, and one rate serves both halves of the parameters.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from intellect_jax.models.lora_shape import input_axes, stack_axes
from intellect_jax.models.transformer import Params
from intellect_jax.parallel.matrices import Matrices, map_matrices
from intellect_jax.trees import leaf, path_keys

UPDATE_RMS = 0.2  # of AdamW's updates, as measured by Moonlight


def scale_by_muon(muon: ConfigDict, params: Params | None) -> optax.GradientTransformation:
    """Momentum and orthogonalisation of the arrays that are not masked, all of them stacks of matrices.

    ``params``: as in ``make_optimizer``; may hold more than the arrays that this is given.
    """
    accumulate = optax.trace(muon.momentum, muon.nesterov)

    def update(updates: Any, state: Any, _: Any = None) -> tuple[Any, Any]:
        momentum, state = accumulate.update(updates, state)
        return orthogonal(momentum, params, muon.steps, jnp.dtype(muon.dtype)), state

    return optax.GradientTransformation(accumulate.init, update)


def orthogonal(tree: Any, params: Params | None, steps: int, dtype: jnp.dtype) -> Any:
    """Each matrix made orthogonal and scaled, float32; every device works on an equal share of them."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    views = []
    for path, _ in leaves:
        keys = path_keys(path)
        where = leaf(params, keys).sharding if params else None
        views.append(Matrices(stack_axes(keys), input_axes(keys), where))
    narrow = [array.astype(dtype) for _, array in leaves]  # before they travel
    done = map_matrices(partial(newton_schulz, steps=steps), narrow, views)
    scaled = [update_scale(x.shape, view) * x.astype(jnp.float32) for x, view in zip(done, views, strict=True)]
    return jax.tree.unflatten(structure, scaled)


def update_scale(shape: tuple[int, ...], view: Matrices) -> float:
    """0.2 · sqrt(max(rows, columns)), which makes an orthogonal matrix a step of root mean square 0.2."""
    return UPDATE_RMS * max(view.lengths(shape)) ** 0.5


def newton_schulz(x: Float[Array, "n r c"], steps: int) -> Float[Array, "n r c"]:
    """U V^T, roughly, of every matrix U S V^T, by ``steps`` quintic iterations in x's dtype; zeros stay zeros."""
    matrices = optax.contrib.MuonDimensionNumbers(1, 2)
    iterate = optax.contrib.scale_by_muon(  # without its momentum: its bias correction is not the usual Muon's
        ns_steps=steps, beta=0.0, nesterov=False, weight_dimension_numbers=matrices
    )
    with jax.default_matmul_precision("highest" if x.dtype == jnp.float32 else "default"):  # or a GPU takes TF32
        return iterate.update(x, iterate.init(x))[0]
