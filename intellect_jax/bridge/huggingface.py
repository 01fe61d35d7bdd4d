"""Hugging Face tensors ↔ the parameter tree in numpy, exactly; and the policy's shape from a config.json. No JAX.

``load.py`` and ``save.py`` do the same for whole folders and sharded device arrays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from intellect_jax.bridge import families
from intellect_jax.bridge.families import hf_config
from intellect_jax.bridge.families.table import Entry
from intellect_jax.bridge.source import Source, find_folder
from intellect_jax.bridge.transpose import assign
from intellect_jax.errors import UserError
from intellect_jax.models.config import ModelConfig
from intellect_jax.transport.safetensors_file import DTYPES
from intellect_jax.trees import TreePath, leaf, nested

Params = dict[str, Any]
Read = Callable[[str], np.ndarray]

_STORED_DTYPE = {"bfloat16": DTYPES["BF16"], "float32": DTYPES["F32"]}
_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")
_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_ATTENTION_BIAS = re.compile(r".+\.self_attn\.[qkvo]_proj\.bias")


def to_hf(params: Params, cfg: ModelConfig, dtype: str = "float32") -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor under its Hugging Face name, C-contiguous, per expert, in ``dtype`` (``bfloat16`` or ``float32``;
    what the family keeps in float32 stays so). ``params``: the parameter tree, of numpy or of device arrays."""
    fetched: dict[TreePath, np.ndarray] = {}
    for entry in entries(cfg):
        if entry.path not in fetched:
            fetched[entry.path] = np.asarray(leaf(params, entry.path))
        yield entry.name, hf_tensor(entry, fetched[entry.path][entry.index], stored_dtype(entry, dtype))


def hf_tensor(entry: Entry, part: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """What the policy has at ``tree[path][index]``, as the Hugging Face tensor, C-contiguous, in ``dtype``."""
    tensor = np.empty(entry.hf_shape, dtype)
    view = tensor.T if entry.transposed else tensor
    assign(view.reshape(entry.shape), part)
    return tensor


def from_hf(
    read: Read,
    names: Iterable[str],
    cfg: ModelConfig,
    dtype: str = "float32",
    keep_float32: Callable[[TreePath], bool] = lambda path: False,
) -> Params:
    """The parameter tree in numpy, of the tensors that ``read(name)`` returns; experts may be fused or one by one.

    Its leaves are of ``dtype``, but float32 at the paths for which ``keep_float32`` holds.
    Raises ValueError naming tensors that are missing, left over, or of another shape than the config says.
    """
    stored = StoredTensors(read, frozenset(names))
    stored.refuse_misfits(cfg)
    flat: dict[TreePath, np.ndarray] = {}
    for entry in entries(cfg):
        if entry.path not in flat:
            kept = "float32" if keep_float32(entry.path) else dtype
            flat[entry.path] = np.empty(entry.stack + entry.shape, stored_dtype(entry, kept))
        assign(flat[entry.path][entry.index], entry.from_hf(stored(entry.name)))
    return nested(flat)


def load_config(path: str | Path) -> ModelConfig:
    """The policy's shape from a Hugging Face folder or Hub id; raises UserError when it is none or not supported."""
    return read_config(Source(find_folder(path, ("config.json",))))


def read_config(source: Source) -> ModelConfig:
    """The policy's shape; raises UserError for a config.json that is missing or not supported."""
    try:
        family = families.named(source.config.get("model_type", ""))
        return family.from_hf_config(hf_config.HFConfig(source.config))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load the model in {source.folder}: {error}") from error


@lru_cache(maxsize=4)
def entries(cfg: ModelConfig) -> tuple[Entry, ...]:
    """Every tensor of the policy with its place in the parameter tree."""
    return tuple(families.of(cfg).entries(cfg))


def stored_dtype(entry: Entry, dtype: str) -> np.dtype:
    """The dtype in which a tensor is kept where ``dtype`` is asked for."""
    return DTYPES["F32"] if entry.float32 else _STORED_DTYPE[dtype]


def fused_name(name: str) -> str | None:
    """The tensor that holds all experts of a layer where one expert's is called ``name``; None for other tensors."""
    match = _EXPERT.fullmatch(name)
    return match and f"{match[1]}.{'down_proj' if match[3] == 'down' else 'gate_up_proj'}"


def is_ignored(name: str, cfg: ModelConfig) -> bool:
    """Whether a tensor of a checkpoint is none of the policy's, though nothing is wrong with it: those of
    multi-token-prediction layers, biases that the config turns off, what older writers of files left in them."""
    layer = _LAYER.match(name)
    return (
        (layer is not None and int(layer[1]) >= cfg.num_hidden_layers)
        or (not cfg.attention_bias and _ATTENTION_BIAS.fullmatch(name) is not None)
        or (cfg.tie_word_embeddings and name == "lm_head.weight")
        or name.endswith("rotary_emb.inv_freq")
    )


class StoredTensors:
    """Reads tensors by per-expert names whatever way the experts are stored."""

    def __init__(self, read: Read, names: frozenset[str]):
        self.read, self.names = read, names

    def __call__(self, name: str) -> np.ndarray:
        if name in self.names:
            return self.read(name)
        match = _EXPERT.fullmatch(name)
        fused = fused_name(name)
        assert match and fused, f"{name} was to be refused"
        expert = self.read(fused)[int(match[2])]
        if match[3] == "down":
            return expert
        width = expert.shape[0] // 2  # [2 * width, hidden]: gate above up
        return expert[:width] if match[3] == "gate" else expert[width:]

    def refuse_misfits(self, cfg: ModelConfig) -> None:
        """Raises ValueError for tensors that the policy needs and are not there, or the other way round."""
        used = set[str]()
        for entry in entries(cfg):
            fused = fused_name(entry.name)
            found = next((name for name in (entry.name, fused) if name in self.names), None)
            if found is None:
                raise ValueError(f"the checkpoint lacks {entry.name}" + (f" (and {fused})" if fused else ""))
            used.add(found)
        left = [name for name in self.names - used if not is_ignored(name, cfg)]
        if left:
            raise ValueError(f"the checkpoint has {len(left)} tensors that the policy lacks, such as {min(left)}")
