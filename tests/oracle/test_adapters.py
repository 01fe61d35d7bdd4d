"""An exported adapter is the same model in PEFT on transformers: logits, merged logits, gradients of every factor."""

import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

from intellect_jax.bridge import Policy, save_adapter, save_pretrained
from intellect_jax.bridge.adapter import peft_tensors
from intellect_jax.models.lora import with_adapter
from intellect_jax.models.lora_shape import TARGETS, Lora
from tests.policies import CONFIGS, loss_function, random_params, relative_error, with_random_adapter

pytestmark = pytest.mark.oracle

WORKER = Path(__file__).with_name("peft_worker.py")
TOLERANCE = 1e-4  # of logits, absolute; of gradients, relative L2 for each tensor
CASES = {
    "llama": ("llama", ("attention", "dense")),
    "qwen3_moe": ("qwen3_moe_sparse_step", TARGETS),
    "glm4_moe": ("plain", TARGETS),
    "glm4_moe_experts": ("two_shared", ("experts",)),
    "glm4_moe_dense": ("qk_norm", ("dense",)),
}


def adapted_policy(name):
    config, targets = CASES[name]
    cfg = CONFIGS[config]
    return with_random_adapter(Policy(jax.device_put(random_params(cfg)), cfg), Lora(3, 5.0, targets))


def inputs():
    tokens, targets = np.random.default_rng(2).integers(0, 96, (2, 16, 16))
    return {"tokens": tokens, "targets": targets}


@pytest.fixture(scope="module")
def exported(tmp_path_factory, oracle_python):
    root = tmp_path_factory.mktemp("exported")
    for name in CASES:
        policy = adapted_policy(name)
        save_pretrained(Policy(policy.params, policy.config), root / name / "model", dtype="float32")
        save_pretrained(policy, root / name / "merged", dtype="float32")
        save_adapter(policy, root / name / "adapter", base=root / name / "model")
        np.savez(root / name / "in.npz", **inputs())
    subprocess.run([oracle_python, WORKER, *(root / name for name in CASES)], check=True, timeout=280)
    return root


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_peft(name, exported):
    theirs, policy = np.load(exported / name / "out.npz"), adapted_policy(name)
    mine = np.asarray(policy.logits(inputs()["tokens"]))
    assert np.abs(theirs["adapted"] - theirs["base"]).max() > 0.5, "or equality would mean nothing"
    adapter, merged = np.abs(mine - theirs["adapted"]).max(), np.abs(mine - theirs["merged"]).max()
    print(f"{name}: adapter {adapter:.1e}, merged {merged:.1e}")
    assert max(adapter, merged) <= TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_autograd_through_peft(name, exported):
    theirs, policy = np.load(exported / name / "out.npz"), adapted_policy(name)
    cfg, adapter, loss_of = policy.config, policy.adapter, loss_function(policy.config)

    def loss(factors):
        return loss_of(with_adapter(policy.params, adapter._replace(factors=factors)), *inputs().values())

    mine, gradients = jax.jit(jax.value_and_grad(loss))(adapter.factors)
    np.testing.assert_allclose(mine, theirs["loss"], rtol=1e-5)
    named = {f"grad/{tensor}": value for tensor, value in peft_tensors(cfg, adapter.lora, jax.device_get(gradients))}
    assert named.keys() == {key for key in theirs if key.startswith("grad/")}
    errors = {tensor: relative_error(value, theirs[tensor]) for tensor, value in named.items()}
    worst = max(errors, key=errors.__getitem__)
    print(f"{name}: {errors[worst]:.1e} {worst}")
    assert errors[worst] <= TOLERANCE, worst
