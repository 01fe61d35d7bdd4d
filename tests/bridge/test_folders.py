"""Folders: what is imported is exported bit by bit, with what training ignores; damage is told in one line."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from intellect_jax.bridge import Policy, load_pretrained, save_pretrained
from intellect_jax.bridge.huggingface import from_hf, load_config, to_hf
from intellect_jax.bridge.source import Source
from intellect_jax.bridge.tokenizer import load_tokenizer, write_character_tokenizer
from intellect_jax.errors import UserError
from intellect_jax.transport.safetensors_file import DTYPES
from tests.policies import CONFIGS, SMALL, assert_trees_equal, random_params

UNUSED = {
    "model.layers.3.eh_proj.weight": np.arange(12, dtype=np.float32).reshape(3, 4).astype(DTYPES["BF16"]),
    "model.layers.3.shared_head.norm.weight": np.ones(5, np.float32),
    "model.rotary_emb.inv_freq": np.full(4, 0.25, np.float32),
}
TIED = dataclasses.replace(SMALL, tie_word_embeddings=True, attention_bias=False)


def tensors_of(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_same_tensors(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape, name
        assert a[name].tobytes() == b[name].tobytes(), name


def fuse(tensors):
    """The same with all experts of a layer in one tensor, in place."""
    for layer in sorted({name.split(".experts.")[0] for name in tensors if ".experts." in name}):
        parts = [
            [tensors.pop(f"{layer}.experts.{e}.{side}_proj.weight") for side in ("gate", "up", "down")]
            for e in range(SMALL.n_routed_experts)
        ]
        tensors[f"{layer}.experts.gate_up_proj"] = np.stack([np.concatenate(part[:2]) for part in parts])
        tensors[f"{layer}.experts.down_proj"] = np.stack([part[2] for part in parts])


def foreign(folder, cfg=SMALL, dtype="bfloat16", fused=False, extra=UNUSED):
    """A folder as others write it: one file, tensors and config keys that training ignores. Returns its tensors."""
    save_pretrained(Policy(random_params(cfg), cfg), folder, dtype=dtype)
    tensors = {**load_file(folder / "model.safetensors"), **extra}
    if fused:
        fuse(tensors)
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    news = {"num_nextn_predict_layers": 1, "made_by": {"someone": [1, None]}, "eos_token_id": [5, 7]}
    (folder / "config.json").write_text(json.dumps({**config, **news}))
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.7, "eos_token_id": [5, 7]}))
    write_character_tokenizer(folder)
    return tensors


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("fused", [False, True], ids=["per_expert", "fused"])
@pytest.mark.parametrize("max_shard_bytes", [1 << 30, 20_000], ids=["single", "sharded"])
def test_import_and_export_changes_nothing(tmp_path, dtype, fused, max_shard_bytes):
    tensors = foreign(tmp_path / "in", dtype=dtype, fused=fused)
    policy = load_pretrained(tmp_path / "in", dtype=dtype)
    save_pretrained(policy, tmp_path / "out", dtype=dtype, max_shard_bytes=max_shard_bytes)
    assert_same_tensors(tensors_of(tmp_path / "out"), tensors)
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "out" / name).read_text()) == json.loads((tmp_path / "in" / name).read_text())
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "in" / name).read_bytes()
    names = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    if max_shard_bytes == 1 << 30:
        assert names == ["model.safetensors"]
    else:
        assert names == [f"model-{i + 1:05d}-of-{len(names):05d}.safetensors" for i in range(len(names))]
        largest = max(tensor.nbytes for tensor in tensors.values())
        assert all((tmp_path / "out" / n).stat().st_size < max(20_000, largest) + 10_000 for n in names)
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        assert {n: f for f in names for n in load_file(tmp_path / "out" / f)} == index["weight_map"]
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.parametrize("name", CONFIGS)
def test_every_shape_of_policy_comes_back(tmp_path, name):
    policy = Policy(random_params(CONFIGS[name]), CONFIGS[name])
    save_pretrained(policy, tmp_path / "a", dtype="float32", max_shard_bytes=50_000)
    loaded = load_pretrained(tmp_path / "a")
    assert loaded.config == policy.config
    assert_trees_equal(loaded.params, policy.params)
    save_pretrained(loaded, tmp_path / "b", dtype="float32")
    assert_same_tensors(tensors_of(tmp_path / "b"), tensors_of(tmp_path / "a"))


def test_the_selection_bias_keeps_its_dtype(tmp_path):
    foreign(tmp_path / "in")
    tensors = load_file(tmp_path / "in" / "model.safetensors")
    biases = [name for name in tensors if name.endswith("e_score_correction_bias")]
    assert len(biases) == 2
    for name in biases:
        assert tensors[name].dtype == np.float32
        tensors[name] = tensors[name].astype(DTYPES["BF16"])
    save_file(tensors, tmp_path / "in" / "model.safetensors")
    policy = load_pretrained(tmp_path / "in", dtype="bfloat16")
    assert policy.params["moe_layers"]["moe"]["router"]["bias"].dtype == np.float32
    save_pretrained(policy, tmp_path / "out")
    assert_same_tensors(tensors_of(tmp_path / "out"), tensors)


def test_unused_tensors_that_repeat_used_ones_follow_training(tmp_path):
    """A tied head stored once more, and biases that the config turns off."""
    bias = {"model.layers.0.self_attn.q_proj.bias": np.arange(48, dtype=np.float32)}
    foreign(tmp_path / "in", TIED, extra=bias | {"lm_head.weight": np.zeros((96, 32), DTYPES["BF16"])})
    policy = load_pretrained(tmp_path / "in")
    trained = dataclasses.replace(
        policy, params={**policy.params, "embed": {"weight": policy.params["embed"]["weight"] + 1}}
    )
    save_pretrained(trained, tmp_path / "out")
    out = tensors_of(tmp_path / "out")
    assert out["lm_head.weight"].tobytes() == out["model.embed_tokens.weight"].tobytes()
    assert np.abs(out["lm_head.weight"].astype(np.float32)).sum() > 0
    np.testing.assert_array_equal(out["model.layers.0.self_attn.q_proj.bias"], next(iter(bias.values())))


def test_a_bias_that_the_config_asks_for_is_not_ignored(tmp_path):
    foreign(tmp_path / "in", extra={"model.layers.0.self_attn.o_proj.bias": np.ones(32, np.float32)})
    with pytest.raises(UserError, match=r"1 tensors that the policy lacks, such as .*o_proj\.bias"):
        load_pretrained(tmp_path / "in")


def test_another_dtype_is_said_in_the_config(tmp_path):
    foreign(tmp_path / "in")
    save_pretrained(load_pretrained(tmp_path / "in"), tmp_path / "out", dtype="float32")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "float32"
    used = {name: t for name, t in tensors_of(tmp_path / "out").items() if name not in UNUSED}
    assert {str(tensor.dtype) for tensor in used.values()} == {"float32"}


def test_export_takes_the_tokenizer_along_and_replaces_an_older_folder(tmp_path):
    out, tokenizer = tmp_path / "out", tmp_path / "tokenizer"
    write_character_tokenizer(tokenizer)
    out.mkdir()
    (out / "stale.safetensors").write_text("old")
    save_pretrained(Policy(random_params(SMALL), SMALL), out, tokenizer=tokenizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tokenizer"]
    assert not (out / "stale.safetensors").exists()
    messages = [{"role": "user", "content": "abc"}]
    ours, exported = load_tokenizer(tokenizer), load_tokenizer(out)
    assert exported.apply_chat_template(messages, tokenize=False) == ours.apply_chat_template(messages, tokenize=False)
    for file in ("config.json", "generation_config.json"):
        content = json.loads((out / file).read_text())
        assert (content["eos_token_id"], content["pad_token_id"]) == (ours.eos_token_id, ours.pad_token_id)
    assert load_config(out) == SMALL


def test_a_runs_tokenizer_adds_its_special_ids_to_those_of_the_source(tmp_path):
    foreign(tmp_path / "in")
    write_character_tokenizer(tmp_path / "tokenizer")
    assert load_tokenizer(tmp_path / "tokenizer").eos_token_id == 5  # one of the source's two
    save_pretrained(load_pretrained(tmp_path / "in"), tmp_path / "out", tokenizer=tmp_path / "tokenizer")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"]) == ([5, 7], 0)


def test_an_export_that_fails_leaves_the_older_folder(tmp_path):
    policy = Policy(random_params(SMALL), SMALL)
    save_pretrained(policy, tmp_path / "out")
    before = tensors_of(tmp_path / "out")
    broken = dataclasses.replace(policy, params={**policy.params, "norm": {"scale": np.ones(7, np.float32)}})
    with pytest.raises(ValueError, match="shape"):
        save_pretrained(broken, tmp_path / "out", max_shard_bytes=20_000)
    assert_same_tensors(tensors_of(tmp_path / "out"), before)
    save_pretrained(policy, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_damaged_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot load the model in .*nowhere"):
        load_config(tmp_path / "nowhere")
    folder = tmp_path / "model"
    save_pretrained(Policy(random_params(SMALL), SMALL), folder)
    file = folder / "model.safetensors"
    content = file.read_bytes()
    for damaged in (b"", content[:50], content[:-1], content[:8] + b"x" + content[9:]):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"model\.safetensors"):
            load_pretrained(folder)
    file.unlink()
    with pytest.raises(UserError, match=r"lacks model\.safetensors"):
        load_pretrained(folder)


def test_a_hub_id_without_network_is_one_clear_line(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for load in (load_config, load_pretrained):
        with pytest.raises(
            UserError, match=r"cannot load the model some/model: no such folder, nor from .* Hub: .+"
        ) as e:
            load("some/model")
        assert "\n" not in str(e.value)


def test_a_hub_id_that_was_fetched_before_loads_offline(monkeypatch, tmp_path):
    repo = tmp_path / "models--some--model"
    foreign(repo / "snapshots" / ("0" * 40))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    policy = load_pretrained("some/model", dtype="bfloat16")
    assert policy.config == load_config("some/model") == SMALL
    source = Source(repo / "snapshots" / ("0" * 40))
    assert_trees_equal(policy.params, from_hf(source.read, source.tensors, SMALL, "bfloat16"))


def test_logits_of_packed_segments_are_those_of_the_sequences_alone(tmp_path):
    save_pretrained(Policy(random_params(SMALL), SMALL), tmp_path / "model", dtype="float32")
    policy = load_pretrained(tmp_path / "model")
    tokens = np.random.default_rng(0).integers(0, SMALL.vocab_size, (1, 12))
    segments = np.array([[0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 0]])  # padding on both sides
    packed = np.asarray(policy.logits(tokens, segments))
    assert packed.shape == (1, 12, SMALL.vocab_size) and packed.dtype == np.float32
    for start, stop in ((2, 6), (6, 11)):
        alone = np.asarray(policy.logits(tokens[:, start:stop]))
        np.testing.assert_allclose(packed[:, start:stop], alone, atol=1e-5)
    assert np.abs(packed[:, 6:11] - np.asarray(policy.logits(tokens))[:, 6:11]).max() > 0.1


def test_tensors_are_those_of_the_weight_store(tmp_path):
    """Export and publishing write the same bits."""
    params = random_params(SMALL)
    save_pretrained(Policy(params, SMALL), tmp_path / "out")
    assert_same_tensors(tensors_of(tmp_path / "out"), dict(to_hf(params, SMALL, "bfloat16")))


def test_what_is_float32_among_bfloat16_stays_so(tmp_path):
    """As transformers writes routers from 5.24 on, with bits that bfloat16 has not."""
    foreign(tmp_path / "in")
    tensors = load_file(tmp_path / "in" / "model.safetensors")
    routers = [name for name in tensors if name.endswith("mlp.gate.weight")]
    assert len(routers) == 2
    for name in routers:
        tensors[name] = tensors[name].astype(np.float32) * np.float32(1.0001)
    save_file(tensors, tmp_path / "in" / "model.safetensors")
    save_pretrained(load_pretrained(tmp_path / "in"), tmp_path / "out", dtype="bfloat16")
    assert_same_tensors(tensors_of(tmp_path / "out"), tensors)
