"""A run's directory: one supervisor at a time, fresh or resumed, and the config.json that its roles read."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from intellect_jax import config as schema
from intellect_jax.errors import UserError
from intellect_jax.files import write_json
from launch.configuration import DEFAULTS

# A resumed run may differ from its earlier start in these keys and groups: how long, how often, with what machines.
MAY_CHANGE = (
    "run.root",
    "trainer.max_steps",
    "trainer.platform",
    "trainer.gpu_memory",
    "trainer.batch_timeout",
    "distributed",
    "orchestrator.address",
    "orchestrator.max_attempts",
    "eval",
    "environments",
    "sampler.backend",
    "sampler.num_servers",
    "sampler.urls",
    "sampler.slots",
    "sampler.min_inflight",
    "sampler.max_inflight",
    "sampler.cache_high_water",
    "sampler.paused_at_once",
    "sampler.prefill_rows",
    "sampler.decode_steps",
    "sampler.page_size",
    "sampler.pages",
    "sampler.prefix_reuse",
    "sampler.request_timeout",
    "sampler.platform",
    "sampler.gpu_memory",
    "weights.keep",
    "weights.keep_gib",
    "weights.transport",
    "weights.address",
    "weights.cache",
    "checkpoint",
    "export",
    "guard",
    "monitor",
    "bench",
    "launch",
)


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Holds the run for this process; raises UserError when another supervisor has it. Ends with the process, too."""
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    # Beside the run directory, not in it: --fresh renames that one.
    with (run_dir.parent / f".{run_dir.name}.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise UserError(f"{run_dir} is in use by process {file.read().strip() or '?'}: stop it first") from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def started(run_dir: Path) -> bool:
    """Whether roles ever ran here: a dry run leaves a config.json that binds nobody."""
    return (run_dir / "logs").is_dir()


def set_aside(run_dir: Path) -> Path | None:
    """Moves an earlier run of this name to ``<name>.previous``, replacing the one there; None when there is no run."""
    if not run_dir.exists():
        return None
    previous = run_dir.with_name(run_dir.name + ".previous")
    if previous.exists():
        shutil.rmtree(previous)
    run_dir.rename(previous)
    return previous


def write_config(config: ConfigDict, run_dir: Path) -> Path:
    """Writes the resolved configuration for the roles to read."""
    path = run_dir / "config.json"
    write_json(path, schema.to_plain(config))
    return path


def refuse_changes(config: ConfigDict, run_dir: Path) -> None:
    """Raises UserError when the run of this directory was started with other values of keys that must stay."""
    path = run_dir / "config.json"
    if not started(run_dir) or not path.is_file():
        return
    changes = differences(json.loads(path.read_text()), schema.to_plain(config))
    if changes:
        listed = "; ".join(f"{name} was {old!r}, now {new!r}" for name, old, new in changes[:3])
        more = f"; and {len(changes) - 3} more" if len(changes) > 3 else ""
        raise UserError(
            f"{run_dir} was started with another configuration: {listed}{more}. Use --fresh, or another run.name"
        )


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, old, new) of every key that may not change; a key that an older release did not have had its default."""
    changes = []
    for name, default in DEFAULTS.items():
        before, now = (
            _lookup(old, name, schema.to_plain(default)),
            _lookup(new, name, schema.to_plain(default)),
        )
        if before != now and not any(name == free or name.startswith(free + ".") for free in MAY_CHANGE):
            changes.append((name, before, now))
    return changes


def _lookup(plain: dict[str, Any], dotted: str, default: Any) -> Any:
    value: Any = plain
    for part in dotted.split("."):
        if not isinstance(value, dict) or part not in value:
            return default
        value = value[part]
    return value
