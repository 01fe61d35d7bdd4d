"""Adapters in PEFT folders and merged into whole models."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intellect_jax.bridge import Policy, load_adapter, load_pretrained, save_adapter, save_pretrained
from intellect_jax.bridge.save import policy_tensors
from intellect_jax.bridge.streams import Fetcher
from intellect_jax.errors import UserError
from intellect_jax.models.lora_shape import TARGETS, Lora
from intellect_jax.transport import safetensors_file
from tests.policies import CONFIGS, SMALL, assert_trees_equal, random_params, with_random_adapter

TOKENS = np.random.default_rng(4).integers(0, SMALL.vocab_size, (2, 16))
CASES = {"plain": TARGETS, "two_shared": ("dense",), "qwen3_moe_sparse_step": TARGETS, "llama": ("attention", "dense")}


def adapted(name, rank=4):
    cfg = CONFIGS[name]
    return with_random_adapter(Policy(jax.device_put(random_params(cfg)), cfg), Lora(rank, 6.0, CASES[name]))


@pytest.mark.parametrize("name", CASES)
def test_a_folder_and_back_changes_no_bit(name, tmp_path):
    policy = adapted(name)
    save_adapter(policy, tmp_path / "adapter", base="org/base")
    again = load_adapter(replace(policy, adapter=None), tmp_path / "adapter")
    assert_trees_equal(again.adapter.factors, policy.adapter.factors)
    assert again.adapter.lora == policy.adapter.lora
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 6.0, "org/base")


def test_factors_lie_as_peft_lays_them_out(tmp_path):
    """Delta of expert e is B[:, :, e] A[e], with A as [experts, rank, in] and B as [out, rank, experts]."""
    policy = adapted("plain")
    save_adapter(policy, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    content, stored = file.read_bytes(), safetensors_file.read_header(file)
    prefix = "base_model.model.model.layers.2.mlp.experts.base_layer"
    a, b = (
        np.frombuffer(content[at.start : at.stop], np.float32).reshape(at.shape)
        for at in (stored[f"{prefix}.lora_{side}.weight"] for side in "AB")
    )
    delta = np.einsum("ore,eri->eoi", b.reshape(-1, 4, 8), a.reshape(8, 4, -1))
    mine = policy.adapter.factors["moe_layers"]["moe"]["experts"]["lora"]
    gate, up = (np.einsum("eir,ero->eoi", mine["gate_up_a"][1], mine[side][1]) for side in ("gate_b", "up_b"))
    np.testing.assert_allclose(delta, np.concatenate([gate, up], axis=1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [pytest.param("plain", marks=pytest.mark.slow), "llama"])
def test_the_merged_model_is_the_adapted_policy(name, tmp_path):
    policy = adapted(name)
    before = jax.device_get(policy.params)
    save_pretrained(policy, tmp_path / "merged", dtype="float32")
    merged = load_pretrained(tmp_path / "merged")
    expected = np.asarray(policy.logits(TOKENS))
    error = np.abs(np.asarray(merged.logits(TOKENS)) - expected).max()
    print(f"{name}: {error:.1e}")
    assert error <= 1e-5
    assert np.abs(np.asarray(replace(policy, adapter=None).logits(TOKENS)) - expected).max() > 0.5
    published = dict(policy_tensors(policy, "float32"))
    for tensor, value in policy_tensors(merged, "float32"):
        np.testing.assert_array_equal(value, published[tensor])
    assert_trees_equal(jax.device_get(policy.params), before)


def test_a_bfloat16_base_is_merged_in_float32():
    policy = adapted("plain")
    policy = replace(policy, params=jax.tree.map(lambda x: x.astype(jnp.bfloat16), policy.params))
    wide = replace(policy, params=jax.tree.map(lambda x: x.astype(jnp.float32), policy.params))
    for (name, tensor), (_, expected) in zip(
        policy_tensors(policy, "float32"), policy_tensors(wide, "float32"), strict=True
    ):
        np.testing.assert_array_equal(tensor, expected, err_msg=name)


def test_merging_holds_a_layer_of_two_arrays(monkeypatch):
    """However many arrays the policy has, the pieces that are kept are two."""
    fetchers = []
    original = Fetcher.__init__
    monkeypatch.setattr(Fetcher, "__init__", lambda self, *args: (original(self, *args), fetchers.append(self))[0])
    policy = adapted("plain")
    largest = max(x.nbytes for x in jax.tree.leaves(policy.params))
    for _ in policy_tensors(policy, "float32"):
        held = [piece.nbytes for piece in fetchers[0]._pieces.values()]
        assert len(held) <= 2 and sum(held) <= largest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_rslora": True}, "use_rslora=True is not supported"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern={'q_proj': 8} is not supported"),
        ({"peft_type": "IA3"}, "peft_type='IA3' is not supported"),
        ({"r": 8}, r"lora_A.weight has shape \[4, 32\], the policy asks for \[8, 32\]"),
    ],
)
def test_a_folder_of_another_kind_is_refused(change, message, tmp_path):
    policy = adapted("plain")
    save_adapter(policy, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=message):
        load_adapter(policy, tmp_path / "adapter")


def test_a_folder_of_another_base_is_refused(tmp_path):
    save_adapter(adapted("plain"), tmp_path / "adapter")
    with pytest.raises(UserError, match="cannot load the adapter in"):
        load_adapter(adapted("llama"), tmp_path / "adapter")
    with pytest.raises(UserError, match="No such file"):
        load_adapter(adapted("llama"), tmp_path / "nothing")


def test_a_policy_without_an_adapter_has_none_to_save(tmp_path):
    with pytest.raises(ValueError, match="has no adapter"):
        save_adapter(replace(adapted("llama"), adapter=None), tmp_path / "adapter")
