import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intellect_jax.config import default_config, validate
from intellect_jax.models.transformer import abstract_params
from intellect_jax.trainer.optimizer import decay_mask, make_optimizer
from intellect_jax.trees import path_keys
from tests.policies import CONFIGS, SMALL


def test_norms_and_biases_are_not_decayed():
    mask = decay_mask(abstract_params(CONFIGS["qk_norm"]))
    for path, decayed in jax.tree_util.tree_leaves_with_path(mask):
        assert decayed == (path[-1].key not in ("scale", "bias")), jax.tree_util.keystr(path)


def test_one_step_equals_adamw_written_out():
    opt = default_config().trainer.optimizer
    opt.update(weight_decay=0.1, clip_norm=1.0, b1=0.8, b2=0.9, eps=1e-6)
    params = {"w": {"kernel": jnp.array([2.0, -1.0])}, "n": {"scale": jnp.array([3.0])}}
    grads = {"w": {"kernel": jnp.array([3.0, 0.0])}, "n": {"scale": jnp.array([4.0])}}
    optimizer = make_optimizer(opt)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)

    def adam(g):  # the first step: both moments' bias corrections cancel their decays
        g = np.asarray(g) / 5.0  # clipped from norm 5 to 1
        return g / (np.abs(g) + 1e-6)

    np.testing.assert_allclose(updates["w"]["kernel"], adam([3.0, 0.0]) + 0.1 * np.array([2.0, -1.0]), rtol=1e-5)
    np.testing.assert_allclose(updates["n"]["scale"], adam([4.0]), rtol=1e-5)


def test_muon_has_one_moment_of_matrices_and_adamw_two_of_the_rest():
    opt = default_config().trainer.optimizer
    opt.name = "muon"
    state = jax.eval_shape(make_optimizer(opt).init, abstract_params(SMALL))
    moments: dict[tuple[str, ...], int] = {}
    for path, _ in jax.tree_util.tree_leaves_with_path(state):
        keys = tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))[1:]  # the first: muon or adamw
        moments[keys] = moments.get(keys, 0) + 1
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_params(SMALL)):
        keys = path_keys(path)
        matrix = leaf.ndim >= 3 and not {"router", "bias", "scale"} & set(keys)
        assert moments[keys] == (1 if matrix else 2), keys
    assert moments["embed", "weight"] == moments["head", "kernel"] == 2


def test_adapters_refuse_muon():
    config = default_config()
    config.trainer.optimizer.name, config.lora.rank = "muon", 4
    assert "trainer.optimizer.name='muon', lora.rank=4: adapters train with adamw" in "\n".join(validate(config))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_moments_are_of_the_dtype_that_was_asked_for(name):
    opt = default_config().trainer.optimizer
    opt.update(name=name, moments_dtype="bfloat16")
    state = jax.eval_shape(make_optimizer(opt).init, abstract_params(SMALL))
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(state) if leaf.ndim}
    assert dtypes == {jnp.dtype(jnp.bfloat16)}
