"""config.json of each family: what is read, what is assumed, what is refused by name."""

import pytest

from intellect_jax import config as schema
from intellect_jax.bridge import families
from intellect_jax.bridge.families import hf_config
from intellect_jax.models.config import TRAITS, ModelConfig
from intellect_jax.models.rope_scaling import RopeScaling
from tests.policies import CONFIGS, of_family


def file_of(cfg, **changes):
    family = families.of(cfg)
    written = hf_config.write(cfg, family.MODEL_TYPE, family.ARCHITECTURE, family.to_hf_config(cfg))
    return {key: value for key, value in {**written, **changes}.items() if value is not ...}


def read(values):
    return families.named(values["model_type"]).from_hf_config(hf_config.HFConfig(values))


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_written_is_read_back(name):
    assert read(file_of(CONFIGS[name])) == CONFIGS[name]


def test_dense_families_write_no_key_of_experts():
    assert not [key for key in file_of(of_family("llama")) if "expert" in key or "moe_" in key or "group" in key]


REFUSED = [
    ("qwen3_moe", {"use_sliding_window": True}, "use_sliding_window=True"),
    ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types has 'sliding_attention'"),
    ("llama", {"mlp_bias": True}, "mlp_bias=True"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
    ("qwen3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    ("qwen3_moe", {"num_experts": ...}, "lacks num_experts"),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type='dynamic'"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0, "alpha": 1}}, "linear RoPE with alpha"),
    ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "lacks high_freq_factor, low_freq_factor"),
    ("qwen3", {"rope_parameters": {"full_attention": {}}}, "default RoPE with full_attention"),
]


@pytest.mark.parametrize(("family", "changes", "message"), REFUSED)
def test_what_is_not_supported_is_refused_by_name(family, changes, message):
    with pytest.raises(ValueError, match=message):
        read(file_of(of_family(family), **changes))


def test_keys_that_files_leave_out():
    lean = {"rms_norm_eps": ..., "head_dim": ..., "num_key_value_heads": ..., "rope_theta": ...}
    llama = read(file_of(of_family("llama"), **lean))
    assert (llama.rms_norm_eps, llama.head_dim, llama.num_key_value_heads, llama.rope_theta) == (1e-6, 8, 4, 1e4)
    assert read(file_of(of_family("qwen3"), head_dim=...)).head_dim == 128
    assert read(file_of(of_family("qwen3_moe"), head_dim=..., norm_topk_prob=...)).norm_topk_prob is False
    renamed = file_of(of_family("qwen3_moe"), num_experts=..., num_local_experts=8)
    assert read(renamed).n_routed_experts == 8


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_the_original_context_is_found_where_transformers_looks(key):
    yarn = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 5e5}
    inside = file_of(of_family("qwen3"), **{key: {**yarn, "original_max_position_embeddings": 99}})
    assert (read(inside).rope_scaling, read(inside).rope_theta) == (RopeScaling("yarn", 4.0, 99), 5e5)
    above = {**inside, "original_max_position_embeddings": 77}
    assert read(above).rope_scaling == RopeScaling("yarn", 4.0, 77)
    nowhere = file_of(of_family("qwen3"), **{key: yarn}, max_position_embeddings=512)
    assert read(nowhere).rope_scaling == RopeScaling("yarn", 4.0, 512)


@pytest.mark.parametrize("family", TRAITS)
def test_fresh_weights_of_every_family_make_a_file_that_is_read_back(family):
    model = schema.default_config().model
    model.family = family
    cfg = ModelConfig.from_config(model, 102)
    assert cfg.family == family and cfg.use_qk_norm is family.startswith("qwen3")
    assert read(file_of(cfg)) == cfg
