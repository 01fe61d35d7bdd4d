import jax
import jax.numpy as jnp
import numpy as np

from intellect_jax.config import default_config
from intellect_jax.models.transformer import abstract_params
from intellect_jax.trainer.optimizer import decay_mask, make_optimizer, rl_rates, sft_rates
from tests.policies import CONFIGS


def test_supervised_rates_warm_up_hold_and_decay_to_zero():
    sft = default_config().sft
    sft.update(steps=10, learning_rate=1.0, warmup_steps=4, decay_steps=3)
    np.testing.assert_allclose(sft_rates(sft), [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 2 / 3, 1 / 3], rtol=1e-5)


def test_rl_rates_follow_the_schedule():
    opt = default_config().trainer.optimizer
    opt.update(learning_rate=2.0, warmup_steps=2)
    np.testing.assert_allclose(rl_rates(opt, 4), [1, 2, 2, 2])
    opt.schedule = "linear"
    np.testing.assert_allclose(rl_rates(opt, 6), [1, 2, 2, 1.5, 1, 0.5])
    opt.schedule = "cosine"
    np.testing.assert_allclose(rl_rates(opt, 4), [1, 2, 2, 1], atol=1e-6)


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
