"""How much memory and disk a run will need and what this machine has. Arithmetic only: nothing imports JAX."""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from math import lcm, prod
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from intellect_jax.bridge import families
from intellect_jax.bridge.families.table import Entry
from intellect_jax.models.config import ModelConfig
from intellect_jax.models.lora_shape import Lora, target_of
from launch import addresses

BYTES = {"float32": 4, "bfloat16": 2}
MASTER = GRADIENT = 4  # bytes, float32
_CGROUPS = (  # (limit, use) of version 2, then 1
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
_DEVICES = re.compile(r"--xla_force_host_platform_device_count=(\d+)")


class Trained(NamedTuple):
    """How many parameters train, and moments that the optimizer keeps of them."""

    parameters: int
    moments: int


def parameter_count(cfg: ModelConfig) -> int:
    """Parameters of the whole policy."""
    return _sum(cfg, lambda entry: prod(entry.shape))


def adapter_count(cfg: ModelConfig, lora: Lora) -> int:
    """Parameters of a policy's adapters."""

    def factors(entry: Entry) -> int:
        if not lora.adapts(entry.path):
            return 0
        outputs, inputs = entry.hf_shape
        shares_a = entry.path[-1] == "up"  # a routed expert's, with its gate
        return lora.rank * (outputs + (0 if shares_a else inputs))

    return _sum(cfg, factors)


def trained_count(config: ConfigDict, cfg: ModelConfig) -> Trained:
    """What trains: AdamW keeps two moments of a parameter, Muon one of each matrix of a layer."""
    lora = Lora.from_config(config.lora)
    parameters = adapter_count(cfg, lora) if lora else parameter_count(cfg)
    muon = config.trainer.optimizer.name == "muon"
    matrices = _sum(cfg, lambda entry: prod(entry.shape) if target_of(entry.path) else 0) if muon else 0
    return Trained(parameters, 2 * parameters - matrices)


def device_moments(config: ConfigDict, cfg: ModelConfig) -> float:
    """Bytes of moments in a device's memory between steps, for one trained parameter."""
    opt, trained = config.trainer.optimizer, trained_count(config, cfg)
    return 0.0 if opt.offload else BYTES[opt.moments_dtype] * trained.moments / trained.parameters


def _saved_bytes(config: ConfigDict, trained: Trained) -> int:
    """The trainer's state in a checkpoint."""
    return MASTER * trained.parameters + BYTES[config.trainer.optimizer.moments_dtype] * trained.moments


def _sum(cfg: ModelConfig, size: Callable[[Entry], int]) -> int:
    """Of ``size`` over all tensors; layers of a kind are equal, so one of each is counted."""

    def count(layers: int, dense: int) -> int:
        plain = replace(cfg, decoder_sparse_step=1, mlp_only_layers=())
        small = replace(plain, num_hidden_layers=layers, first_k_dense_replace=dense)
        return sum(size(entry) for entry in families.of(cfg).entries(small))

    rest = count(0, 0)
    dense_layer, moe_layer = count(1, 1) - rest, count(1, 0) - rest
    return rest + cfg.num_dense_layers * dense_layer + cfg.num_moe_layers * moe_layer


def disk_bytes(config: ConfigDict, parameters: int, trained: Trained) -> int:
    """What checkpoints, versions and the export take at most; one more of each is there while it is written.

    ``trained``: of the parameters, or beside them.
    """
    total = (config.checkpoint.keep + 1 + _kept_besides(config)) * _saved_bytes(config, trained)
    if config.trainer.max_steps:
        total += _versions_bytes(config, BYTES[config.weights.dtype] * parameters)
    if config.export.enabled:
        total += BYTES[config.export.dtype] * parameters
    return total


def _versions_bytes(config: ConfigDict, one: float) -> float:
    """What versions of ``one`` byte count each take in full."""
    kept = config.weights.keep * one
    if config.weights.keep_gib:
        least = (config.orchestrator.max_off_policy_steps + 2) * one
        kept = min(kept, max(config.weights.keep_gib * 2**30, least))
    return kept + one


def _kept_besides(config: ConfigDict) -> int:
    """Checkpoints that ``checkpoint.keep_every`` holds on to by the end of the run; step 0 is one of them."""
    every, keep_every = config.checkpoint.every, config.checkpoint.keep_every
    return 1 + config.trainer.max_steps // lcm(every, keep_every) if every and keep_every else 0


def memory_bytes(config: ConfigDict, parameters: int, trained: Trained, roles: tuple[str, ...]) -> int:
    """Weights, gradients and moments of the roles that this machine runs; activations come on top.

    A frozen base is counted as bfloat16, though it may be float32.
    """
    frozen = BYTES["bfloat16"] * parameters * (config.lora.rank > 0)
    total = (_saved_bytes(config, trained) + GRADIENT * trained.parameters + frozen) * ("trainer" in roles)
    if "sampler" in roles and not addresses.given(config, "sampler.urls"):
        total += config.sampler.num_servers * BYTES[config.sampler.dtype] * parameters
    return total


def available_memory() -> int | None:
    """Bytes that new processes may still take, of the machine and of its control group; None where nothing tells."""
    known = []
    meminfo = _read("/proc/meminfo")
    if match := re.search(r"MemAvailable:\s+(\d+) kB", meminfo):
        known.append(int(match[1]) * 1024)
    for limit, used in _CGROUPS:
        if (most := _read(limit).strip()).isdigit():
            known.append(max(0, int(most) - int(_read(used) or 0)))
    return min(known, default=None)


def folder_bytes(folder: Path) -> int:
    """Size of all files below a folder, 0 without one."""
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file())


def runs_on_cpu(platform: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether JAX will use the CPU for sure: asked for, or no plug-in for anything else is installed."""
    asked = platform or environment.get("JAX_PLATFORMS", "")
    if asked:
        return asked == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and find_spec("jax_plugins") is None and find_spec("libtpu") is None


def cpu_devices(environment: Mapping[str, str] = os.environ) -> int:
    """Devices that JAX makes of the CPU: one, unless XLA_FLAGS or JAX_NUM_CPU_DEVICES asks for more."""
    forced = _DEVICES.findall(environment.get("XLA_FLAGS", ""))
    asked = forced[-1] if forced else environment.get("JAX_NUM_CPU_DEVICES", "")
    return int(asked) if asked.isdigit() else 1


def trainer_cpu_devices(config: ConfigDict, environment: Mapping[str, str] = os.environ) -> int:
    """CPU devices of all trainer processes that this machine starts."""
    return max(1, config.distributed.processes) * (config.distributed.local_devices or cpu_devices(environment))


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
