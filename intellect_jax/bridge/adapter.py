"""A policy's LoRA adapter ↔ a PEFT folder (adapter_config.json, adapter_model.safetensors).

PEFT keeps A [rank, in] and B [out, rank] of each linear map. transformers 5 holds the routed experts of a layer in two
parameters, ``gate_up_proj`` and ``down_proj``; PEFT wraps those (``target_parameters``; ``ParamWrapper`` of
peft/tuners/lora/layer.py) and keeps A as [experts · rank, in], expert by expert, and B as [out, rank · experts], with
the experts of each rank together. Of the two the first one's factors are below ``base_layer``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from intellect_jax.bridge.companions import copy_tokenizer, write_json
from intellect_jax.bridge.huggingface import entries, fused_name
from intellect_jax.bridge.policy import Policy
from intellect_jax.bridge.save import replace_folder
from intellect_jax.errors import UserError
from intellect_jax.models.config import ModelConfig
from intellect_jax.models.lora import Adapter, abstract_adapter
from intellect_jax.models.lora_shape import TARGETS, Lora, factor_paths, stack_axes, target_of
from intellect_jax.models.transformer import Params
from intellect_jax.parallel.processes import meet
from intellect_jax.transport import safetensors_file
from intellect_jax.trees import TreePath, leaf

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
# Keys of adapter_config.json with the only value that is supported, which is what a missing one means.
_PLAIN = {
    "peft_type": "LORA",
    "bias": "none",
    "use_rslora": False,
    "use_dora": False,
    "lora_bias": False,
    "fan_in_fan_out": False,
    "rank_pattern": {},
    "alpha_pattern": {},
}


@dataclass(frozen=True)
class Module:
    """One adapted module of transformers: its layer's A is at ``a``, its B the ones at ``bs`` beside each other."""

    name: str  # with PEFT's prefix
    target: str
    layer: int
    a: TreePath
    bs: tuple[TreePath, ...]


def save_adapter(
    policy: Policy, out_dir: str | Path, tokenizer: str | Path | None = None, base: str | Path | None = None
) -> None:
    """Writes the policy's adapter in place of an older folder, by rename: for ``peft.PeftModel.from_pretrained``.

    Factors are stored in float32. ``tokenizer``: a folder; None: the source's. ``base``: what the folder names as its
    base model, a folder or Hub id; None: the source. The parameters themselves are not looked at. With several
    processes all must call it. Raises ValueError for a policy without an adapter.
    """
    if policy.adapter is None:
        raise ValueError("the policy has no adapter: save_pretrained writes it as it is")
    out = Path(out_dir).absolute()
    work = out.with_name(f".{out.name}.tmp")
    factors = jax.tree.map(_on_host, policy.adapter.factors)
    if jax.process_index() == 0:
        shutil.rmtree(work, ignore_errors=True)  # of an export that died
        work.mkdir(parents=True)
        safetensors_file.write(work / WEIGHTS, dict(peft_tensors(policy.config, policy.adapter.lora, factors)))
        write_json(work / CONFIG, _config(policy.config, policy.adapter.lora, base or policy.source))
        copy_tokenizer(tokenizer or policy.source, work)
        replace_folder(work, out)
    meet("export: adapter written")


def load_adapter(policy: Policy, folder: str | Path) -> Policy:
    """``policy`` with the adapter of a PEFT folder, as :func:`save_adapter` writes it.

    Raises UserError for a folder that is damaged, of another base, or of a kind of LoRA that is not supported.
    """
    try:
        lora, tensors = _read(Path(folder), policy.config)
        factors = _factors(policy.config, lora, tensors)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"cannot load the adapter in {folder}: {error}") from error
    return replace(policy, adapter=Adapter(jax.device_put(factors), lora))


def _modules(cfg: ModelConfig, lora: Lora) -> Iterator[Module]:
    """Every adapted module, in the order of layers."""
    for entry in entries(cfg):
        if not lora.adapts(entry.path):
            continue
        layer, *expert = entry.index
        a, b = factor_paths(entry.path)
        name, bs = entry.name.removesuffix(".weight"), [b]
        if fused := fused_name(entry.name):
            if any(expert) or entry.path[-1] == "up":  # the layer's first gate and down stand for all its experts
                continue
            name = fused.replace(".gate_up_proj", ".base_layer").removesuffix(".down_proj")
            bs += [factor_paths((*entry.path[:-1], "up"))[1]] if entry.path[-1] == "gate" else []
        yield Module(_PREFIX + name, target_of(entry.path) or "", layer, a, tuple(bs))


def peft_tensors(cfg: ModelConfig, lora: Lora, factors: Params) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of a PEFT folder by its name, C-contiguous. ``factors``: the adapter tree in numpy."""
    for module in _modules(cfg, lora):
        a, bs = _stacked(factors, module, lora)
        b = np.concatenate(bs, axis=-1)
        yield f"{module.name}.lora_A.weight", np.ascontiguousarray(a.swapaxes(1, 2)).reshape(-1, a.shape[1])
        yield f"{module.name}.lora_B.weight", np.ascontiguousarray(b.transpose(2, 1, 0)).reshape(b.shape[2], -1)


def _factors(cfg: ModelConfig, lora: Lora, tensors: dict[str, np.ndarray]) -> Params:
    """The inverse of :func:`peft_tensors`; raises ValueError for tensors missing, left over or of other shapes."""
    factors = jax.tree.map(lambda spec: np.empty(spec.shape, spec.dtype), abstract_adapter(cfg, lora))
    left = dict(tensors)
    for module in _modules(cfg, lora):
        a, bs = _stacked(factors, module, lora)
        experts, inputs, rank = a.shape
        widths = [b.shape[-1] for b in bs]
        read_a = _taken(left, f"{module.name}.lora_A.weight", (experts * rank, inputs))
        read_b = _taken(left, f"{module.name}.lora_B.weight", (sum(widths), rank * experts))
        a[...] = read_a.reshape(experts, rank, inputs).swapaxes(1, 2)
        split = np.split(read_b.reshape(-1, rank, experts).transpose(2, 1, 0), np.cumsum(widths)[:-1], axis=-1)
        for b, part in zip(bs, split, strict=True):
            b[...] = part
    if left:
        raise ValueError(f"{len(left)} tensors fit nothing of the policy, such as {min(left)}")
    return factors


def _stacked(factors: Params, module: Module, lora: Lora) -> tuple[np.ndarray, list[np.ndarray]]:
    """Views of a module's A [experts, in, rank] and its Bs [experts, rank, out]; a linear map is one expert."""
    a, *bs = (leaf(factors, path)[module.layer] for path in (module.a, *module.bs))
    experts = a.shape[0] if stack_axes(module.a) == 2 else 1
    return a.reshape(experts, -1, lora.rank), [b.reshape(experts, lora.rank, -1) for b in bs]


def _taken(tensors: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name not in tensors:
        raise ValueError(f"{WEIGHTS} lacks {name}")
    tensor = tensors.pop(name)
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)}, the policy asks for {list(shape)}")
    return tensor


def _config(cfg: ModelConfig, lora: Lora, base: str | Path | None) -> dict[str, Any]:
    modules: list[str] = []
    parameters: list[str] = []
    if "attention" in lora.targets:
        modules += _ATTENTION
    if "dense" in lora.targets and not cfg.num_moe_layers:
        modules += _MLP
    elif "dense" in lora.targets:
        # As modules, PEFT would take these names for the experts that older versions of transformers had.
        wheres = ["mlp"] * bool(cfg.num_dense_layers) + ["mlp.shared_experts"] * bool(cfg.n_shared_experts)
        parameters += [f"{where}.{name}.weight" for where in wheres for name in _MLP]
    if "experts" in lora.targets:
        parameters += ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    return {
        **_PLAIN,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None if base is None else str(base),
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": modules,
        "target_parameters": parameters or None,
        "inference_mode": True,
    }


def _read(folder: Path, cfg: ModelConfig) -> tuple[Lora, dict[str, np.ndarray]]:
    config = json.loads((folder / CONFIG).read_text())
    for key, right in _PLAIN.items():
        if (config.get(key) or right) != right:
            raise ValueError(f"{key}={config[key]!r} is not supported (only {right!r})")
    tensors = _read_tensors(folder / WEIGHTS)
    every = Lora(config["r"], float(config["lora_alpha"]), TARGETS)
    found = {module.target for module in _modules(cfg, every) if f"{module.name}.lora_A.weight" in tensors}
    return replace(every, targets=tuple(target for target in TARGETS if target in found)), tensors


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    stored = safetensors_file.read_header(path)
    content = path.read_bytes()
    return {
        name: np.frombuffer(content[start:stop], safetensors_file.DTYPES[dtype]).reshape(shape)
        for name, (dtype, shape, start, stop) in stored.items()
    }


def _on_host(factor: jax.Array) -> np.ndarray:
    whole = not isinstance(factor, jax.Array) or factor.is_fully_addressable
    return np.asarray(factor if whole else multihost_utils.process_allgather(factor, tiled=True))
