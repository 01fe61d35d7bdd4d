"""Prints, for every mesh given, how far values and gradients are from those of one device; run by test_logprobs.py.

python logprobs_run.py 'data=2 tensor=4' …: eight fake devices. The last line is JSON, a dict of each mesh's relative L2
errors: of logprobs, entropy and the gradients to hidden states and kernel, the latter as its transpose too (tied).
"""

import json
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from intellect_jax.config import default_config
from intellect_jax.kernels.logprobs import member_logprobs
from intellect_jax.parallel.axes import AXES
from intellect_jax.parallel.logprobs import make_logprobs
from intellect_jax.parallel.mesh import make_mesh, sharding
from tests.policies import quick_jit, relative_error

ROWS, LENGTH, WIDTH, VOCABULARY = 8, 48, 16, 16800


def inputs():
    """Extreme logits too; the first rows have few members or none, so that devices skip different chunks."""
    rng = np.random.default_rng(0)
    hidden, kernel = rng.normal(size=(ROWS, LENGTH, WIDTH)), rng.normal(size=(WIDTH, VOCABULARY))
    hidden[3, 5] *= 1e3
    share = np.array([0, 0, 0.02, 0.3, 1, 1, 0.5, 0.5])[:, None]
    members = rng.random((ROWS, LENGTH)) < share
    targets, temperature = rng.integers(0, VOCABULARY, members.shape), rng.uniform(0.5, 2, members.shape)
    return hidden.astype("f"), kernel.astype("f"), targets.astype("i"), temperature.astype("f"), members


def values(logprobs_of, where):
    """Compiled on arrays laid out as the mesh has them."""

    def loss(hidden, kernel, table, *others):
        logprobs, entropy = logprobs_of(hidden, kernel, *others)
        tied, _ = logprobs_of(hidden, table.T, *others)
        return jnp.sum(jnp.sin(logprobs) + 0.3 * entropy + tied), (logprobs, entropy)

    hidden, kernel, *others = inputs()
    axes = [("rows", "sequence", None), ("embed", "vocab"), ("vocab", "embed"), *(("rows", "sequence"),) * 3]
    arrays = [where(x, *names) for x, names in zip((hidden, kernel, kernel.T, *others), axes, strict=True)]
    gradients, outputs = quick_jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*arrays)
    return [np.asarray(x) for x in (*outputs, *gradients)], gradients


def on_mesh(mesh: Mesh, x: jax.Array, *names: str | None) -> jax.Array:
    return jax.device_put(x, sharding(mesh, *names))


def main(meshes: list[str]) -> None:
    expected, _ = values(member_logprobs, lambda x, *_: jnp.asarray(x))
    errors = {}
    for text in meshes:
        config = default_config()
        sizes = {name: int(size) for name, size in (part.split("=") for part in text.split())}
        config.parallel.update(dict.fromkeys(AXES, 1) | sizes)
        mesh = make_mesh(config.parallel)
        found, gradients = values(make_logprobs(mesh), partial(on_mesh, mesh))
        assert gradients[1].sharding.is_equivalent_to(sharding(mesh, "embed", "vocab"), 2), text
        errors[text] = list(map(relative_error, found, expected))
    print(json.dumps(errors))


if __name__ == "__main__":
    main(sys.argv[1:])
