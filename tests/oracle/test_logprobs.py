"""Token log-probabilities, entropy and gradients are PyTorch's."""

import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intellect_jax.kernels.logprobs import member_logprobs
from tests.policies import relative_error


@pytest.mark.oracle
def test_values_and_gradients_are_those_of_autograd(oracle_python, tmp_path):
    tokens, width, vocabulary = 200, 24, 9001  # two chunks of tokens and of the vocabulary
    rng = np.random.default_rng(0)
    given = {
        "hidden": rng.normal(size=(tokens, width)).astype("f"),
        "kernel": rng.normal(size=(width, vocabulary)).astype("f"),
        "targets": rng.integers(0, vocabulary, tokens),
        "temperature": rng.uniform(0.3, 2, tokens).astype("f"),
        "d_logprobs": rng.normal(size=tokens).astype("f"),
        "d_entropy": rng.normal(size=tokens).astype("f"),
    }
    np.savez(tmp_path / "in.npz", **given)
    worker = Path(__file__).with_name("logprobs_worker.py")
    subprocess.run([oracle_python, str(worker), str(tmp_path)], check=True, timeout=200)
    theirs = np.load(tmp_path / "out.npz")

    row = {name: jnp.asarray(value) if name == "kernel" else jnp.asarray(value)[None] for name, value in given.items()}
    others = (row["targets"], row["temperature"], jnp.ones((1, tokens), bool))
    outputs, pull_back = jax.vjp(
        lambda hidden, kernel: member_logprobs(hidden, kernel, *others), row["hidden"], row["kernel"]
    )
    gradients = pull_back((row["d_logprobs"], row["d_entropy"]))
    names = ("logprobs", "entropy", "d_hidden", "d_kernel")
    for name, ours in zip(names, (*outputs, *gradients), strict=True):
        assert relative_error(np.asarray(ours).reshape(theirs[name].shape), theirs[name]) < 1e-5, name
