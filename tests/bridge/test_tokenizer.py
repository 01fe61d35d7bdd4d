import os
import string
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intellect_jax.bridge.tokenizer import CHARACTERS, load_tokenizer, write_character_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_character_tokenizer(folder)
    return load_tokenizer(folder)


def test_ids(tokenizer):
    assert len(tokenizer) == 102
    assert tokenizer.pad_token_id == 0
    assert tokenizer.eos_token == "<|end|>"
    assert sorted(tokenizer.get_vocab().values()) == list(range(102))


@settings(max_examples=50, deadline=None)
@given(text=st.text(alphabet=CHARACTERS, max_size=60))
def test_one_id_a_character_and_back(tokenizer, text):
    if "<|" in text:
        return  # might spell a special token
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text


def test_other_characters_are_kept_as_unknown(tokenizer):
    ids = tokenizer.encode("aéb")
    assert len(ids) == 3 and ids[1] == tokenizer.unk_token_id


def test_chat_template(tokenizer):
    messages = [
        {"role": "system", "content": " be\nkind "},
        {"role": "user", "content": "abc"},
        {"role": "assistant", "content": "cba"},
        {"role": "user", "content": "de"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|system|> be\nkind <|user|>abc<|assistant|>cba<|end|><|user|>de<|assistant|>"
    ids = tokenizer.apply_chat_template(messages, return_dict=False)
    assert ids == tokenizer.encode(text.removesuffix("<|assistant|>"))
    assert len(ids) == 5 + sum(len(m["content"]) for m in messages)


def test_template_refuses_unknown_roles(tokenizer):
    with pytest.raises(Exception, match="unknown role: tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_writing_is_deterministic(tmp_path):
    write_character_tokenizer(tmp_path / "a")
    write_character_tokenizer(tmp_path / "b")
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_survives_save_pretrained(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.chat_template == tokenizer.chat_template
    assert again.encode(string.printable[:95]) == tokenizer.encode(string.printable[:95])


def test_missing_tokenizer_is_one_clear_line(tmp_path):
    with pytest.raises(ValueError, match="no tokenizer in") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_loading_imports_neither_jax_nor_torch(tmp_path):
    code = f"""
import sys
from pathlib import Path
from intellect_jax.bridge.tokenizer import load_tokenizer, write_character_tokenizer
write_character_tokenizer(Path({str(tmp_path)!r}))
load_tokenizer({str(tmp_path)!r})
sys.exit(bool({{"jax", "torch", "tensorflow"}} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_loading_says_nothing(tmp_path):
    """Without PyTorch, which nobody here misses, transformers warns; and under CI=true the warning is in our log."""
    write_character_tokenizer(tmp_path)
    say = "import logging, sys; logging.basicConfig(); from intellect_jax.bridge.tokenizer import load_tokenizer"
    done = subprocess.run(
        [sys.executable, "-c", f"{say}; load_tokenizer(sys.argv[1])", str(tmp_path)],
        env={k: v for k, v in os.environ.items() if not k.startswith("TRANSFORMERS_")} | {"CI": "true"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
