"""Hugging Face folders and tensors ↔ the parameter tree, exactly.

Everything here is numpy on the host: device arrays are fetched on the way out, and the caller places what comes in.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from intellect_jax.bridge import families
from intellect_jax.bridge.families import hf_config
from intellect_jax.bridge.families.table import Entry
from intellect_jax.bridge.tokenizer import load_tokenizer
from intellect_jax.errors import UserError
from intellect_jax.models.config import ModelConfig
from intellect_jax.transport import safetensors_file
from intellect_jax.transport.safetensors_file import DTYPES

Params = dict[str, Any]
Read = Callable[[str], np.ndarray]

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
_STORED_DTYPE = {"bfloat16": DTYPES["BF16"], "float32": DTYPES["F32"]}
_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


def to_hf(params: Params, cfg: ModelConfig, dtype: str = "float32") -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor under its Hugging Face name, C-contiguous, per expert, in ``dtype`` (``bfloat16`` or ``float32``;
    what the family keeps in float32 stays so). ``params``: the parameter tree, of numpy or of device arrays."""
    fetched: dict[tuple[str, ...], np.ndarray] = {}
    for entry in _entries(cfg):
        if entry.path not in fetched:
            fetched[entry.path] = np.asarray(_leaf(params, entry.path))
        target = DTYPES["F32"] if entry.float32 else _STORED_DTYPE[dtype]
        # Transposed, then cast: numpy does both at once two to three times slower.
        yield entry.name, np.ascontiguousarray(entry.to_hf(fetched[entry.path])).astype(target, copy=False)


def from_hf(read: Read, names: Iterable[str], cfg: ModelConfig, dtype: str = "float32") -> Params:
    """The parameter tree in numpy, of the tensors that ``read(name)`` returns; experts may be fused or one by one.

    Raises ValueError naming tensors that are missing, left over, or of another shape than the config says.
    """
    read = _Checkpoint(read, frozenset(names))
    flat: dict[tuple[str, ...], np.ndarray] = {}
    for entry in _entries(cfg):
        target = DTYPES["F32"] if entry.float32 else _STORED_DTYPE[dtype]
        if entry.path not in flat:
            flat[entry.path] = np.empty(entry.stack + entry.shape, target)
        flat[entry.path][entry.index] = entry.from_hf(read(entry.name).astype(target, copy=False))
    read.refuse_left_over(cfg)
    params: Params = {}
    for path, array in flat.items():
        node = params
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = array
    return params


def load_config(path: str | Path) -> ModelConfig:
    """The policy's shape from a Hugging Face folder; raises UserError when it is no such folder or not supported."""
    try:
        values = json.loads((Path(path) / "config.json").read_text())
        return families.named(values.get("model_type", "")).from_hf_config(hf_config.HFConfig(values))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load the model in {path}: {error}") from error


def load_pretrained_params(path: str | Path, dtype: str = "float32") -> tuple[Params, ModelConfig]:
    """(parameter tree in numpy, config) of a Hugging Face folder, one file or sharded.

    Raises UserError when the folder lacks something, is damaged, or its tensors are not those of its config.
    """
    cfg = load_config(path)
    try:
        return _load_params(Path(path), cfg, dtype), cfg
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load the model in {path}: {error}") from error


def _load_params(folder: Path, cfg: ModelConfig, dtype: str) -> Params:
    stored = {
        name: (file, where)
        for file in _weight_files(folder)
        for name, where in safetensors_file.read_header(file).items()
    }
    maps = {file: np.memmap(file, np.uint8, "r") for file, _ in stored.values()}

    def read(name: str) -> np.ndarray:
        file, where = stored[name]
        return maps[file][where.start : where.stop].view(DTYPES[where.dtype]).reshape(where.shape)

    return from_hf(read, stored, cfg, dtype)


def save_pretrained(
    params: Params,
    cfg: ModelConfig,
    out_dir: str | Path,
    *,
    dtype: str = "bfloat16",
    tokenizer_dir: str | Path | None = None,
    max_shard_bytes: int = 5 << 30,
) -> None:
    """Writes a folder that transformers and vLLM load: config, weights, generation config, tokenizer, chat template.

    The folder appears whole, by rename, in place of an older one. ``max_shard_bytes`` bounds a weight file.
    """
    out = Path(out_dir).absolute()
    work = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(work, ignore_errors=True)  # of an export that died
    work.mkdir(parents=True)
    _write_weights(work, to_hf(params, cfg, dtype), max_shard_bytes)
    special = _copy_tokenizer(Path(tokenizer_dir), work) if tokenizer_dir else {}
    family = families.of(cfg)
    config = hf_config.write(cfg, family.MODEL_TYPE, family.ARCHITECTURE, family.to_hf_config(cfg))
    _write_json(work / "config.json", {**config, "torch_dtype": dtype, **special})
    _write_json(work / "generation_config.json", special)
    _replace_folder(work, out)


class _Checkpoint:
    """Reads tensors by per-expert names whatever way the experts are stored, and knows which ones were read."""

    def __init__(self, read: Read, names: frozenset[str]):
        self.read, self.names, self.used = read, names, set[str]()

    def __call__(self, name: str) -> np.ndarray:
        if name in self.names:
            self.used.add(name)
            return self.read(name)
        match = _EXPERT.fullmatch(name)
        if not match:
            raise ValueError(f"the checkpoint lacks {name}")
        fused = f"{match[1]}.{'down_proj' if match[3] == 'down' else 'gate_up_proj'}"
        if fused not in self.names:
            raise ValueError(f"the checkpoint lacks {name} (and {fused})")
        self.used.add(fused)
        expert = self.read(fused)[int(match[2])]
        if match[3] == "down":
            return expert
        width = expert.shape[0] // 2  # [2 * width, hidden]: gate above up
        return expert[:width] if match[3] == "gate" else expert[width:]

    def refuse_left_over(self, cfg: ModelConfig) -> None:
        """Raises ValueError for tensors that nothing read, other than those of multi-token-prediction layers and
        what older writers of Hugging Face files left in them."""
        harmless = ("rotary_emb.inv_freq", "lm_head.weight" if cfg.tie_word_embeddings else "rotary_emb.inv_freq")
        left = [n for n in self.names - self.used if not n.endswith(harmless) and _layer(n) < cfg.num_hidden_layers]
        if left:
            raise ValueError(f"the checkpoint has {len(left)} tensors that the policy lacks, such as {min(left)}")


def _layer(name: str) -> int:
    match = re.match(r"model\.layers\.(\d+)\.", name)
    return int(match[1]) if match else -1


@lru_cache(maxsize=4)
def _entries(cfg: ModelConfig) -> tuple[Entry, ...]:
    return tuple(families.of(cfg).entries(cfg))


def _leaf(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, each checked to be there."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        files = ["model.safetensors"]
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(missing)}")
    return [folder / file for file in files]


def _write_weights(folder: Path, tensors: Iterable[tuple[str, np.ndarray]], max_bytes: int) -> None:
    """model.safetensors, or numbered shards and their index."""
    contents = []
    for i, shard in enumerate(safetensors_file.split_shards(tensors, max_bytes)):
        contents.append(safetensors_file.write(folder / f"shard-{i}", shard))
    total = len(contents)
    files = [
        f"model-{i + 1:05d}-of-{total:05d}.safetensors" if total > 1 else "model.safetensors" for i in range(total)
    ]
    for i, file in enumerate(files):
        os.rename(folder / f"shard-{i}", folder / file)
    if total > 1:
        size = sum(where.stop - where.start for stored in contents for where in stored.values())
        weight_map = {name: file for file, stored in zip(files, contents, strict=True) for name in stored}
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        _write_json(folder / "model.safetensors.index.json", index)


def _copy_tokenizer(source: Path, target: Path) -> dict[str, int]:
    """Copies the tokenizer's files and returns the ids of the special tokens that config files name."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    tokenizer = load_tokenizer(target)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {name: value for name, value in ids.items() if value is not None}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _replace_folder(work: Path, final: Path) -> None:
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.rename(final, old)
    os.rename(work, final)
    shutil.rmtree(old, ignore_errors=True)
