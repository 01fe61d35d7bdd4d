"""Small byte-level BPE tokenizers with the special tokens and the template rules of real model families."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from intellect_jax.bridge.tokenizer import load_tokenizer

TEMPLATES = Path(__file__).parent / "templates"
MARKUP = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
# Family -> (end-of-sequence token first, then other special tokens; tokens that are added but not special).
FAMILIES = {
    "chatml": (["<|im_end|>", "<|im_start|>", "<|endoftext|>"], []),
    "qwen3": (["<|im_end|>", "<|im_start|>", "<|endoftext|>"], MARKUP),
    "glm4_5": (
        ["<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"],
        [*MARKUP, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"],
    ),
    "llama3": (["<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>"], []),
}
TEXTS = [
    "assistant\n\n\nthe answer",
    "user\n\nwhat is the weather like?\n",
    "\n\n{'name': 'the'}\n\n\n",
    "a  b   c é 你好",
]


def family_tokenizer(folder: Path, family: str, template: str | None = None):
    """Writes the family's tokenizer into ``folder`` and loads it as any other; ``template`` instead of its own."""
    special, added = FAMILIES[family]
    tokenizer = Tokenizer(models.BPE())
    if family == "qwen3":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # merges over words
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, min_frequency=1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in added])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": special[0],
        "bos_token": "<|begin_of_text|>" if family == "llama3" else None,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(template or (TEMPLATES / f"{family}.jinja").read_text().rstrip("\n"))
    return load_tokenizer(folder)
