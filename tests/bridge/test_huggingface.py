"""Parameters survive the way to a Hugging Face folder and back, and wrong folders are refused by name."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from intellect_jax.bridge import Policy, save_pretrained
from intellect_jax.bridge.huggingface import from_hf, load_config, to_hf
from intellect_jax.errors import UserError
from intellect_jax.models.transformer import abstract_params
from intellect_jax.transport.safetensors_file import DTYPES
from intellect_jax.transport.weights import WeightStore
from intellect_jax.types import Version
from tests.policies import CONFIGS, SMALL, assert_trees_equal, random_params


@pytest.mark.parametrize("name", CONFIGS)
def test_tensors_hold_exactly_the_parameters(name):
    cfg = CONFIGS[name]
    params = random_params(cfg)
    tensors = dict(to_hf(params, cfg))
    assert sum(t.size for t in tensors.values()) == sum(p.size for p in jax.tree.leaves(params))
    assert all(t.flags.c_contiguous for t in tensors.values())
    back = from_hf(tensors.__getitem__, tensors, cfg)
    assert_trees_equal(back, params)
    assert jax.tree.map(np.shape, back) == jax.tree.map(np.shape, abstract_params(cfg))


def test_names_and_layout_are_those_of_published_checkpoints():
    params = random_params(SMALL)
    tensors = dict(to_hf(params, SMALL))
    attention = params["moe_layers"]["attention"]
    np.testing.assert_array_equal(
        tensors["model.layers.2.self_attn.q_proj.weight"], attention["q"]["kernel"][1].reshape(32, 48).T
    )
    np.testing.assert_array_equal(
        tensors["model.layers.2.self_attn.o_proj.weight"], attention["o"]["kernel"][1].reshape(48, 32).T
    )
    np.testing.assert_array_equal(tensors["model.layers.1.self_attn.k_proj.bias"], attention["k"]["bias"][0].ravel())
    moe = params["moe_layers"]["moe"]
    np.testing.assert_array_equal(tensors["model.layers.2.mlp.experts.5.up_proj.weight"], moe["experts"]["up"][1, 5].T)
    np.testing.assert_array_equal(tensors["model.layers.2.mlp.gate.weight"], moe["router"]["kernel"][1].T)
    np.testing.assert_array_equal(
        tensors["model.layers.0.mlp.down_proj.weight"], params["dense_layers"]["mlp"]["down"]["kernel"][0].T
    )
    np.testing.assert_array_equal(tensors["lm_head.weight"], params["head"]["kernel"].T)


def test_bfloat16_rounds_once_and_keeps_the_selection_bias_in_float32():
    params = random_params(SMALL)
    tensors = dict(to_hf(params, SMALL, "bfloat16"))
    bias = "mlp.gate.e_score_correction_bias"
    assert {str(t.dtype) for name, t in tensors.items() if not name.endswith(bias)} == {"bfloat16"}
    back = from_hf(tensors.__getitem__, tensors, SMALL)
    rounded = jax.tree.map(lambda x: x.astype(DTYPES["BF16"]).astype(np.float32), params)
    rounded["moe_layers"]["moe"]["router"]["bias"] = params["moe_layers"]["moe"]["router"]["bias"]
    assert_trees_equal(back, rounded)
    assert from_hf(tensors.__getitem__, tensors, SMALL, "bfloat16")["norm"]["scale"].dtype == DTYPES["BF16"]


def test_device_arrays_through_the_weight_store(tmp_path):
    params = jax.device_put(random_params(SMALL))
    manifest = WeightStore(tmp_path).publish(Version(0, 0), to_hf(params, SMALL))
    tensors = WeightStore.read(manifest)
    assert_trees_equal(from_hf(tensors.__getitem__, tensors, SMALL), params)


def fused(tensors: dict[str, np.ndarray], layers: range) -> dict[str, np.ndarray]:
    """As transformers 5 holds experts in memory: one tensor for all of them."""
    tensors = dict(tensors)
    for i in layers:
        prefix = f"model.layers.{i}.mlp.experts"
        parts = [
            [tensors.pop(f"{prefix}.{e}.{side}_proj.weight") for side in ("gate", "up", "down")]
            for e in range(SMALL.n_routed_experts)
        ]
        tensors[f"{prefix}.gate_up_proj"] = np.stack([np.concatenate(part[:2]) for part in parts])
        tensors[f"{prefix}.down_proj"] = np.stack([part[2] for part in parts])
    return tensors


def test_fused_experts_are_read():
    params = random_params(SMALL)
    tensors = fused(dict(to_hf(params, SMALL)), range(1, 3))
    assert "model.layers.1.mlp.experts.0.gate_proj.weight" not in tensors
    assert_trees_equal(from_hf(tensors.__getitem__, tensors, SMALL), params)


def test_wrong_tensors_are_refused_by_name():
    tensors = dict(to_hf(random_params(SMALL), SMALL))

    def read(changed):
        return from_hf(changed.__getitem__, changed, SMALL)

    for lost in ("model.norm.weight", "model.layers.1.mlp.experts.3.up_proj.weight"):
        with pytest.raises(ValueError, match=f"lacks {lost}"):
            read({name: t for name, t in tensors.items() if name != lost})
    with pytest.raises(ValueError, match=r"1 tensors that the policy lacks, such as model\.layers\.0\.strange"):
        read({**tensors, "model.layers.0.strange": np.zeros(1)})
    with pytest.raises(ValueError, match=r"model\.norm\.weight has shape \[33\].*\[32\]"):
        read({**tensors, "model.norm.weight": np.zeros(33, np.float32)})
    read({**tensors, "model.layers.3.eh_proj.weight": np.zeros(1)})  # a multi-token-prediction layer is left out


def write_config(folder, **changes):
    save_pretrained(Policy(random_params(SMALL), SMALL), folder)
    values = json.loads((folder / "config.json").read_text())
    values.update(changes)
    kept = {key: value for key, value in values.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba' is not supported; supported: glm4_moe, qwen3_moe, qwen3, llama"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1 is not supported"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config="),
        ({"rope_scaling": {"type": "dynamic", "factor": 4}}, "rope_type='dynamic' is not supported"),
        ({"hidden_size": ...}, "lacks hidden_size"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        load_config(write_config(tmp_path / "model", **changes))


def test_config_reads_both_ways_of_writing_rope_and_knows_the_defaults(tmp_path):
    rope = {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.25}
    gone = dict.fromkeys(("rope_theta", "partial_rotary_factor", "rope_scaling", "use_qk_norm", "attention_bias"), ...)
    loaded = load_config(write_config(tmp_path / "model", rope_parameters=rope, head_dim=None, **gone))
    expected = {"rope_theta": 5e5, "partial_rotary_factor": 0.25, "attention_bias": False, "head_dim": 32 // 4}
    assert loaded == dataclasses.replace(SMALL, **expected)
