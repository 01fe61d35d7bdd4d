"""The exported folder is the same model in transformers: logits and greedy continuations."""

import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intellect_jax.bridge import Policy, load_pretrained, save_pretrained
from intellect_jax.models.transformer import forward, logits
from tests.policies import CONFIGS, random_params

pytestmark = pytest.mark.oracle

WORKER = Path(__file__).with_name("transformers_worker.py")
SEQUENCES, LENGTH, NEW_TOKENS = 64, 24, 8


def all_logits(cfg):
    """A compiled function of parameters and tokens [B, S]: float32 logits [B, S, V]."""

    def compute(params, tokens):
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        return logits(params, cfg, forward(params, cfg, tokens, positions, jnp.ones_like(tokens)).hidden)

    return jax.jit(compute)


def continue_greedily(compute, params, rows):
    """Fills ``rows`` [B, LENGTH + NEW_TOKENS] from LENGTH on, each token from a pass over the whole rows."""
    for at in range(LENGTH, rows.shape[1]):
        rows[:, at] = np.asarray(compute(params, rows))[:, at - 1].argmax(-1)
    return rows[:, LENGTH:]


@pytest.fixture(scope="module")
def exported(tmp_path_factory, oracle_python):
    """A folder with, for each config, model/ and what transformers makes of it in out.npz."""
    root = tmp_path_factory.mktemp("exported")
    # With this seed no token's choice of experts is a tie that rounding decides (seed 1 has one among 24,576).
    tokens = np.random.default_rng(2).integers(0, 96, (SEQUENCES, LENGTH))
    for name, cfg in CONFIGS.items():
        save_pretrained(
            Policy(random_params(cfg), cfg), root / name / "model", dtype="float32", max_shard_bytes=100_000
        )
        np.savez(root / name / "in.npz", tokens=tokens, new_tokens=NEW_TOKENS)
    subprocess.run([oracle_python, WORKER, *(root / name for name in CONFIGS)], check=True, timeout=240)
    return root


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_greedy_continuations_equal_transformers(name, exported):
    policy = load_pretrained(exported / name / "model")
    params, cfg = policy.params, policy.config
    assert cfg == CONFIGS[name]
    tokens = np.load(exported / name / "in.npz")["tokens"]
    theirs = np.load(exported / name / "out.npz")
    rows = np.pad(tokens, ((0, 0), (0, NEW_TOKENS))).astype(np.int32)
    compute = all_logits(cfg)
    mine = np.asarray(compute(params, rows))[:, :LENGTH]
    assert np.ptp(mine, axis=-1).mean() > 1  # or equality would mean nothing
    assert np.abs(mine - theirs["logits"]).max() <= 1e-4
    np.testing.assert_array_equal(continue_greedily(compute, params, rows), theirs["greedy"])
