"""Tokenizers in Hugging Face files: the demo's character tokenizer, and the standard loader."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

PAD, UNKNOWN, SYSTEM, USER, ASSISTANT, END = SPECIAL_TOKENS = (
    "<|pad|>",
    "<|unknown|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
)
CHARACTERS = "\n" + "".join(map(chr, range(ord(" "), ord("~") + 1)))

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role in ("system", "user") -%}
{{- "<|" + message.role + "|>" + message.content -}}
{%- elif message.role == "assistant" -%}
{{- "<|assistant|>" + message.content + "<|end|>" -}}
{%- else -%}
{{- raise_exception("unknown role: " + message.role) -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|assistant|>" -}}{%- endif -%}"""


def write_character_tokenizer(folder: Path) -> None:
    """Writes a tokenizer over newline and printable ASCII, one id a character; other characters are ``<|unknown|>``.

    ``<|pad|>`` is id 0, ``<|end|>`` the end-of-sequence token; 102 ids. Equal bytes at every call.
    """
    config = {
        # The class name that transformers 4 and 5 (and vLLM through either) both know.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "eos_token": END,
        "additional_special_tokens": [SYSTEM, USER, ASSISTANT],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000,
    }
    files = {
        "tokenizer.json": _character_tokenizer().to_str(pretty=True) + "\n",
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
        "chat_template.jinja": CHAT_TEMPLATE,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        part = folder / f".{name}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(folder / name)


def load_tokenizer(path: str | Path) -> Any:
    """The Hugging Face tokenizer of a folder (never touching the network) or of a hub id.

    Raises ValueError, in one line, when there is none or it has no chat template.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # nobody here misses PyTorch
    from transformers import AutoTokenizer  # a second to import, which processes that need no tokenizer save

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=Path(path).is_dir())
    except (OSError, ValueError) as error:
        raise ValueError(f"no tokenizer in {path}: {str(error).splitlines()[0]}") from error
    if not tokenizer.chat_template:
        raise ValueError(f"the tokenizer in {path} has no chat template")
    return tokenizer


def _character_tokenizer() -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models

    vocab = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *CHARACTERS))}
    # BPE without merges: every character is its own token.
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=UNKNOWN))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL_TOKENS])
    return tokenizer
