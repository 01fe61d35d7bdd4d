"""What the user would have to put right sooner or later, told before any process starts: inputs, machine, addresses.

Every function raises UserError, one line with key, value and what would be right. Nothing imports JAX.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from intellect_jax.bridge.huggingface import load_config
from intellect_jax.bridge.tokenizer import CHARACTERS, SPECIAL_TOKENS, load_tokenizer
from intellect_jax.config import to_plain
from intellect_jax.data.records import TFDS, open_source, render_record, to_conversation
from intellect_jax.environments.loader import load_environment
from intellect_jax.errors import UserError
from intellect_jax.models.config import ModelConfig
from intellect_jax.models.lora_shape import Lora, refuse_absent
from intellect_jax.monitor.room import RESERVE
from intellect_jax.parallel.axes import axis_sizes, refuse_uneven
from launch import addresses, estimates
from launch.configuration import Resolved

PATHS = ("model.path", "tokenizer.path", "sft.data", "eval.weights", "sampler.python")
GIB = 2**30


def refuse(resolved: Resolved, roles: tuple[str, ...]) -> None:
    """Checks everything that the run of these roles on this machine needs; cheap checks come first."""
    config = resolved.config
    refuse_missing_paths(config)
    refuse_unwritable(f"run.root={config.run.root}", resolved.run_dir)
    if "orchestrator" in roles:
        addresses.refuse_taken(config)
    if "trainer" in roles:
        addresses.refuse_taken_by_weights(config)
    refuse_environments(config)
    tokenizer, cfg = refuse_model(config)
    if "trainer" in roles:
        refuse_shape(config, cfg)
        refuse_bad_record(config, tokenizer)
    refuse_small_machine(config, cfg, resolved.run_dir, roles)


def refuse_shared_devices(config: ConfigDict) -> None:
    """Several trainer processes of this machine that would all take all of its accelerators."""
    count = config.distributed.processes
    if count > 1 and not config.distributed.local_devices:
        raise UserError(
            f"distributed.local_devices=0: must say how many devices of this machine each of {count} processes takes"
        )


def refuse_trainer(config: ConfigDict) -> None:
    """What the trainer's step needs by itself: a policy, and devices that its shape fits."""
    refuse_missing_paths(config)
    refuse_shape(config, refuse_model(config)[1])


def refuse_shape(config: ConfigDict, cfg: ModelConfig) -> None:
    """What finds nothing to act on in this policy; devices not shared out, or of another number."""
    refuse_absent(Lora.from_config(config.lora), cfg)
    refuse_without_bias(config.trainer.router_bias_rate, cfg)
    if estimates.runs_on_cpu(config.trainer.platform):
        refuse_uneven(axis_sizes(config.parallel, estimates.trainer_cpu_devices(config)), config, cfg)
    else:
        refuse_shared_devices(config)


def refuse_missing_paths(config: ConfigDict) -> None:
    """Keys that name a local file or folder which is not there.

    Hub ids (``org/name``) and data-set names (``tfds:…``) do not look like local paths and pass.
    """
    for name in PATHS:
        group, last = name.split(".")
        value = config[group][last]
        local = value.startswith(("/", ".", "~")) or Path(value).suffix in (".jsonl", ".parquet")
        if local and not Path(value).expanduser().exists():
            raise UserError(f"{name}={value}: no such file or folder")


def refuse_unwritable(what: str, folder: Path) -> None:
    """Tries, in the deepest folder of the path that exists: permissions alone do not tell."""
    try:
        with tempfile.TemporaryDirectory(prefix=".intellect-jax-", dir=_existing(folder)):
            pass
    except OSError as error:
        raise UserError(
            f"{what}: cannot write to {_existing(folder)} ({error.strerror}): choose another folder"
        ) from None


def refuse_without_bias(rate: float, cfg: ModelConfig) -> None:
    """A rate of change for a bias that the policy's routers do not have."""
    if rate and (cfg.router != "sigmoid" or not cfg.num_moe_layers):
        what = f"trainer.router_bias_rate={rate}"
        raise UserError(f"{what}: this {cfg.family} has no routers with a selection bias: set 0")


def refuse_environments(config: ConfigDict) -> None:
    """Environments that are not there, do not take their arguments, or fail to load."""
    for entry in to_plain(config.envs):
        try:
            load_environment(entry["name"], **entry["args"])
        except UserError:
            raise
        except Exception as error:  # whatever an environment's own code raises
            what = f"{type(error).__name__}: {_line(error)}"
            raise UserError(f"environment {entry['name']} with {entry['args']}: {what}") from error


def refuse_model(config: ConfigDict) -> tuple[Any, ModelConfig]:
    """The tokenizer (None: the character tokenizer of fresh weights) and the policy's shape, if they fit together."""
    pretrained = _pretrained_config(config.model.path) if config.model.path else None
    tokenizer, key = _tokenizer(config)
    size = len(SPECIAL_TOKENS) + len(CHARACTERS) if tokenizer is None else len(tokenizer)
    cfg = pretrained or ModelConfig.from_config(config.model, size)
    if cfg.vocab_size < size:
        name = f"model.path={config.model.path}" if pretrained else f"model.vocab_size={cfg.vocab_size}"
        raise UserError(f"{name}: has {cfg.vocab_size} rows, must have at least the {size} of {key}")
    return tokenizer, cfg


def _pretrained_config(path: str) -> ModelConfig:
    try:
        return load_config(path)
    except UserError as error:
        raise UserError(f"model.path={path}: {error}") from None


def _tokenizer(config: ConfigDict) -> tuple[Any, str]:
    """(tokenizer or None for the built-in one, the key that names it)."""
    name = "tokenizer.path" if config.tokenizer.path else "model.path"
    source = config.tokenizer.path or config.model.path
    if not source:
        return None, "the character tokenizer"
    try:
        tokenizer = load_tokenizer(source)
    except Exception as error:  # of transformers: a damaged file may raise anything
        raise UserError(f"{name}={source}: {_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"{name}={source}: the tokenizer must have an end-of-sequence token (eos_token)")
    return tokenizer, f"{name}={source}"


def refuse_bad_record(config: ConfigDict, tokenizer: Any) -> None:
    """The first supervised record. With a tokenizer of the user's own its rendering and length, too."""
    data = config.sft.data
    if not config.sft.steps or data.startswith(TFDS):  # fetching a data set is the trainer's to do
        return
    try:
        where, record = open_source(data)[0]
        to_conversation(where, record)
        samples = [] if tokenizer is None else render_record(tokenizer, where, record)
        length = max((len(tokens) for tokens, _ in samples), default=0)
    except (OSError, ValueError) as error:
        text = _line(error)
        raise UserError(text if text.startswith(data) else f"sft.data={data}: {text}") from error
    if length > max(config.trainer.seq_buckets):
        raise UserError(
            f"{where}: {length} tokens exceed the longest row of trainer.seq_buckets, {max(config.trainer.seq_buckets)}"
        )


def refuse_small_machine(config: ConfigDict, cfg: ModelConfig, run_dir: Path, roles: tuple[str, ...]) -> None:
    """Less disk than checkpoints and versions need, or on a CPU less memory than weights and moments need."""
    parameters, trained = estimates.parameter_count(cfg), estimates.trained_count(config, cfg)
    what = f"model.path={config.model.path}" if config.model.path else f"model.hidden_size={cfg.hidden_size}"
    what = f"{what} ({parameters:,} parameters)"
    platforms = [config[role].platform for role in ("trainer", "sampler") if role in roles]
    needed, available = estimates.memory_bytes(config, parameters, trained, roles), estimates.available_memory()
    if available is not None and all(map(estimates.runs_on_cpu, platforms)) and needed > available:
        raise UserError(
            f"{what}: needs {_gib(needed)} of memory, available are {_gib(available)}: choose a smaller model"
        )
    if "trainer" not in roles:
        return
    needed = estimates.disk_bytes(config, parameters, trained) + RESERVE  # with less, roles would wait for room
    free = shutil.disk_usage(_existing(run_dir)).free
    free += sum(estimates.folder_bytes(run_dir / name) for name in ("checkpoints", "weights", "export"))
    if needed > free:
        keys = f"checkpoint.keep={config.checkpoint.keep}, weights.keep={config.weights.keep}"
        raise UserError(
            f"{keys}, {what}: needs {_gib(needed)} on disk, {_existing(run_dir)} has {_gib(free)}: "
            "keep fewer, or choose another run.root"
        )


def _existing(path: Path) -> Path:
    """The path itself, or the deepest of its parents that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:300]
