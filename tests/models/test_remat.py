"""Remat policies compute the same, with less memory and more work the less they keep."""

import dataclasses
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intellect_jax.config import SCHEMA
from intellect_jax.models.remat import NAMES, Remat
from intellect_jax.models.transformer import abstract_params, forward
from tests.policies import SMALL, quick_jit, random_params, relative_error

ORDER = ["none", "matmuls", "attention", "full"]  # from the most memory to the least
POLICIES = {name: Remat(name) for name in ORDER} | {"attention on the host": Remat("attention", offload=True)}
FEW = ("none", "attention")  # of the fast test
DENSE = dataclasses.replace(SMALL, num_hidden_layers=6, first_k_dense_replace=6)
MIXED = dataclasses.replace(SMALL, num_hidden_layers=6, first_k_dense_replace=2)
SHAPE = (2, 128)


def loss(params, tokens, cfg, remat):
    positions = jnp.broadcast_to(jnp.arange(SHAPE[1]), SHAPE)
    hidden = forward(params, cfg, tokens, positions, jnp.ones(SHAPE, jnp.int32), remat=remat).hidden
    return jnp.sum(jnp.square(hidden * jnp.arange(hidden.shape[-1])))


def compiled(cfg, names):
    """Loss and gradients under each policy."""
    step = quick_jit(jax.value_and_grad(loss), static_argnums=(2, 3))
    tokens = jax.ShapeDtypeStruct(SHAPE, jnp.int32)
    return {name: step.lower(abstract_params(cfg), tokens, cfg, POLICIES[name]).compile() for name in names}


@pytest.mark.parametrize(
    ("cfg", "names"),
    [(DENSE, FEW), pytest.param(MIXED, POLICIES, marks=pytest.mark.slow)],
    ids=["dense", "mixed"],
)
def test_policies_compute_the_same_in_less_memory(cfg, names):
    programs = compiled(cfg, names)
    memory = {name: program.memory_analysis().temp_size_in_bytes for name, program in programs.items()}
    print({name: f"{size / 2**20:.1f} MiB" for name, size in memory.items()})
    sizes = [memory[name] for name in ORDER if name in names]
    assert all(more > 1.1 * less for more, less in pairwise(sizes)), memory
    params = jax.device_put(random_params(cfg))
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, cfg.vocab_size, SHAPE), jnp.int32)
    expected, gradients = programs["none"](params, tokens)
    for name, program in programs.items():
        mine, mine_gradients = program(params, tokens)
        np.testing.assert_allclose(mine, expected, rtol=1e-6, err_msg=name)
        errors = jax.tree.map(relative_error, jax.device_get(mine_gradients), jax.device_get(gradients))
        assert max(jax.tree.leaves(errors)) < 1e-5, name


def test_every_policy_is_a_value_of_the_key():
    check = SCHEMA["trainer"]["remat"].check
    assert set(ORDER) == {"none", *NAMES} and not any(map(check, ORDER))
    assert check("some") and check("True")
