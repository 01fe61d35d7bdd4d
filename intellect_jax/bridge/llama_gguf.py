"""A llama GGUF file → a Hugging Face folder in float32: weights, config, tokenizer. Needs the ``gguf`` package; no JAX.

What llama.cpp's converter (convert_hf_to_gguf.py, LlamaModel) did is undone: quantisation, as far as it can be, the
names of tensors, and the order of the query and key rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from intellect_jax.errors import UserError
from intellect_jax.transport import safetensors_file

_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL = 3  # token type: never made of text


class LlamaFile:
    """The metadata and tensors of a GGUF file; raises UserError when it holds something else than a plain llama with a
    byte-level BPE tokenizer of the ``smollm`` kind."""

    def __init__(self, path: Path):
        if find_spec("gguf") is None:
            raise UserError("reading GGUF needs the gguf package: pip install 'intellect-jax[gguf]'")
        from gguf import GGUFReader

        try:
            self._reader = GGUFReader(path)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: not a GGUF file: {error}") from error
        for key, supported in (
            ("general.architecture", "llama"),
            ("tokenizer.ggml.model", "gpt2"),
            ("tokenizer.ggml.pre", "smollm"),
        ):
            if self.get(key) != supported:
                raise UserError(f"{path}: {key} is {self.get(key)!r}, must be {supported!r}")

    def get(self, key: str, default: Any = None) -> Any:
        field = self._reader.fields.get(key)
        return default if field is None else field.contents()

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        heads, hidden = self.get("llama.attention.head_count"), self.get("llama.embedding_length")
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": len(self.get("tokenizer.ggml.tokens")),
            "hidden_size": hidden,
            "intermediate_size": self.get("llama.feed_forward_length"),
            "num_hidden_layers": self.get("llama.block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self.get("llama.attention.head_count_kv"),
            "head_dim": self.get("llama.attention.key_length", hidden // heads),
            "rope_theta": self.get("llama.rope.freq_base"),
            "rms_norm_eps": round(self.get("llama.attention.layer_norm_rms_epsilon"), 9),  # stored as float32
            "max_position_embeddings": self.get("llama.context_length"),
            "tie_word_embeddings": not any(tensor.name == "output.weight" for tensor in self._reader.tensors),
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "torch_dtype": "float32",
            **self.special_ids,
        }

    @property
    def special_ids(self) -> dict[str, int]:
        names = {"bos": "bos", "eos": "eos", "padding": "pad"}
        return {f"{ours}_token_id": self.get(f"tokenizer.ggml.{theirs}_token_id") for theirs, ours in names.items()}

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every tensor in float32 under its Hugging Face name."""
        from gguf import dequantize

        heads = {"attn_q": self.config["num_attention_heads"], "attn_k": self.config["num_key_value_heads"]}
        for tensor in self._reader.tensors:
            values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
            kind = tensor.name.split(".")[-2]
            yield hf_name(tensor.name), halves_from_pairs(values, heads[kind]) if kind in heads else values

    def tokenizer(self) -> Any:
        """The ``tokenizers.Tokenizer``. GGUF only names how text is split: ``smollm`` is every digit alone, then
        GPT-2's pattern (llama.cpp, LLAMA_VOCAB_PRE_TYPE_SMOLLM)."""
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        tokens = self.get("tokenizer.ggml.tokens")
        merges = [tuple(merge.split(" ")) for merge in self.get("tokenizer.ggml.merges")]
        tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        tokenizer.decoder = decoders.ByteLevel()
        control = [t for t, kind in zip(tokens, self.get("tokenizer.ggml.token_type"), strict=True) if kind == _CONTROL]
        tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
        return tokenizer

    @cached_property
    def tokenizer_config(self) -> dict[str, Any]:
        """The content of tokenizer_config.json."""
        names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
        tokens = self.get("tokenizer.ggml.tokens")
        special = {f"{n}_token": tokens[self.get(f"tokenizer.ggml.{key}_token_id")] for key, n in names.items()}
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **special,
            "clean_up_tokenization_spaces": False,
            "model_max_length": self.get("llama.context_length"),
        }


def write_folder(file: LlamaFile, folder: Path) -> None:
    """Writes everything that a Hugging Face folder holds into ``folder``, which must exist."""
    safetensors_file.write(folder / "model.safetensors", dict(file.tensors()))
    for name, content in (
        ("config.json", file.config),
        ("generation_config.json", file.special_ids),
        ("tokenizer_config.json", file.tokenizer_config),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    file.tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(file.get("tokenizer.chat_template"))


def hf_name(name: str) -> str:
    """``blk.3.attn_q.weight`` → ``model.layers.3.self_attn.q_proj.weight``; raises UserError for an unknown tensor."""
    parts = name.split(".")
    if name in _NAMES:
        return _NAMES[name]
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in _LAYER_NAMES and parts[3] == "weight":
        return f"model.layers.{parts[1]}.{_LAYER_NAMES[parts[2]]}.weight"
    raise UserError(f"the GGUF file has a tensor {name}, which a plain llama has not")


def halves_from_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows [heads * width, in] of a query or key projection, from RoPE over neighbouring pairs of rows, as llama.cpp
    rotates, to RoPE over the two halves of a head, as Hugging Face does: the inverse of LlamaModel.permute there."""
    width = weight.shape[0] // heads
    paired = weight.reshape(heads, width // 2, 2, -1)
    return np.ascontiguousarray(paired.swapaxes(1, 2)).reshape(weight.shape)
