import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intellect_jax.models.ops import Ops
from intellect_jax.models.remat import Remat
from intellect_jax.models.transformer import forward, init_params, logits, param_axes
from tests.policies import CONFIGS, SMALL, quick_jit, random_params

CHOSEN = [
    *("plain", "grouped_scaled", "tied_without_bias", "all_dense"),
    *("qwen3_moe_sparse_step", "qwen3_moe_mlp_only", "qwen3_yarn", "llama_bias"),
]


def policy(cfg):
    return jax.device_put(random_params(cfg))


def random_tokens(cfg, batch, length, seed=0):
    return jax.random.randint(jax.random.key(seed), (batch, length), 0, cfg.vocab_size)


def inputs(tokens, segment_ids=None, positions=None):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape) if positions is None else positions
    segment_ids = jnp.ones_like(tokens) if segment_ids is None else segment_ids
    return tokens, positions, segment_ids


def run(params, cfg, tokens, segment_ids=None, positions=None, **kwargs):
    return jitted_forward(params, cfg, *inputs(tokens, segment_ids, positions), **kwargs)


jitted_forward = quick_jit(forward, static_argnums=1, static_argnames=("compute_dtype", "remat", "ops"))


@pytest.mark.parametrize("name", CHOSEN)
def test_packed_segments_equal_separate_sequences(name):
    cfg = CONFIGS[name]
    params = policy(cfg)
    a, b = random_tokens(cfg, 1, 5, seed=1), random_tokens(cfg, 1, 7, seed=2)
    tokens = jnp.concatenate([a, b, jnp.zeros((1, 4), jnp.int32)], axis=1)
    segment_ids = jnp.array([[1] * 5 + [2] * 7 + [0] * 4])
    positions = jnp.array([[*range(5), *range(7), *range(4)]])
    packed = run(params, cfg, tokens, segment_ids, positions).hidden
    for part, where in ((a, slice(0, 5)), (b, slice(5, 12))):
        rest = ((0, 0), (0, 16 - part.shape[1]))  # as long as the packed row, so that one program serves all
        alone = run(params, cfg, jnp.pad(part, rest), jnp.pad(jnp.ones_like(part), rest)).hidden
        np.testing.assert_allclose(packed[:, where], alone[:, : part.shape[1]], atol=3e-5)


def test_replay_takes_the_given_experts_with_todays_weights():
    cfg = SMALL
    params, tokens = policy(cfg), random_tokens(cfg, 2, 6)
    own = run(params, cfg, tokens)
    np.testing.assert_array_equal(run(params, cfg, tokens, replay=own.routed_experts).hidden, own.hidden)
    np.testing.assert_array_equal(
        run(params, cfg, tokens, replay=jnp.full_like(own.routed_experts, -1)).hidden, own.hidden
    )
    other = (own.routed_experts + 1) % cfg.n_routed_experts
    replayed = run(params, cfg, tokens, replay=other)
    np.testing.assert_array_equal(replayed.routed_experts, other)
    assert jnp.abs(replayed.hidden - own.hidden).max() > 1e-2


def test_a_few_layers_without_a_loop_are_the_same_and_more_are_in_one():
    cfg = SMALL  # one dense layer and two of experts
    params, tokens = policy(cfg), random_tokens(cfg, 2, 6)
    looped, straight = (run(params, cfg, tokens, ops=Ops(unrolled=most)) for most in (1, 2))
    np.testing.assert_allclose(straight.hidden, looped.hidden, atol=1e-5)
    np.testing.assert_array_equal(straight.routed_experts, looped.routed_experts)

    def layers_at_once(most, remat="none"):
        """In a round of the loops over dense and over expert layers."""
        arguments = (params, cfg, *inputs(tokens))
        text = str(jax.make_jaxpr(lambda: forward(*arguments, remat=Remat(remat), ops=Ops(unrolled=most)))())
        return [int(number) for number in re.findall(r"unroll=(\d+)", text)]

    assert layers_at_once(1) == [1, 1] and layers_at_once(2) == [1, 2]
    assert layers_at_once(2, "full") == [1, 1]  # or XLA would find that it can keep what was to be computed again


def test_every_parameter_gets_a_gradient_but_the_selection_bias():
    cfg = SMALL
    params, tokens = policy(cfg), random_tokens(cfg, 4, 12)

    def loss(params):
        hidden = forward(params, cfg, *inputs(tokens)).hidden
        return jnp.sum(jax.nn.log_softmax(logits(params, cfg, hidden))[..., 0])

    for path, grad in jax.tree_util.tree_leaves_with_path(quick_jit(jax.grad(loss))(params)):
        name = jax.tree_util.keystr(path)
        if "'router']['bias'" in name or "'k']['bias'" in name:  # softmax ignores what shifts every key alike
            continue
        assert jnp.abs(grad).max() > 0, name


def test_the_same_seed_gives_the_same_parameters_and_axes_fit_their_shapes():
    cfg = CONFIGS["qk_norm"]
    init = quick_jit(init_params, static_argnums=0)
    first, second = init(cfg, 3), init(cfg, 3)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert not np.array_equal(first["embed"]["weight"], init(cfg, 4)["embed"]["weight"])
    jax.tree.map(lambda p, axes: p.ndim == len(axes) or pytest.fail(f"{p.shape} {axes}"), first, param_axes(cfg))
