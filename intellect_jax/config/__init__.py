"""Every configuration key, once: its default, its meaning with unit, and what values are right, in ``keys/`` by theme.

A recipe in ``configs/`` starts from :func:`default_config` and overrides. :func:`validate` checks a resolved config and
returns one line per problem; nothing else in the code base checks configuration values.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from intellect_jax.config import rules
from intellect_jax.config.key import Key, Section
from intellect_jax.config.schema import SCHEMA, walk

__all__ = [
    "SCHEMA",
    "Key",
    "default_config",
    "env",
    "from_plain",
    "get",
    "makes_deltas",
    "published_copies",
    "replays_experts",
    "to_plain",
    "validate",
    "walk",
]


def env(name: str, ratio: float = 1.0, **args: Any) -> dict[str, Any]:
    """One entry of ``config.envs``: the package's name, its share of the prompts, arguments of load_environment."""
    return {"name": name, "ratio": ratio, "args": args}


def default_config() -> ConfigDict:
    """The whole configuration with every default; unknown keys raise on assignment."""

    def build(schema: Section) -> dict[str, Any]:
        return {k: v.default if isinstance(v, Key) else build(v) for k, v in schema.items()}

    return ConfigDict(build(SCHEMA), convert_dict=True).lock()


def get(config: ConfigDict, dotted: str) -> Any:
    """The value under a dotted name."""
    for part in dotted.split("."):
        config = config[part]
    return config


def validate(config: ConfigDict) -> list[str]:
    """One line per problem of a resolved config: key, value, and what would be right; empty when it is fine."""
    problems = []
    for name, key in walk():
        value = get(config, name)
        right = key.check(value) if key.check else None
        if right:
            problems.append(f"{name}={value!r}: must be {right}")
    return problems or rules.cross_key_problems(config)


def to_plain(value: Any) -> Any:
    """ConfigDicts as dicts and tuples as lists: what JSON can hold."""
    if isinstance(value, (ConfigDict, dict)):
        return {k: to_plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_plain(v) for v in value]
    return value


def from_plain(plain: dict[str, Any]) -> ConfigDict:
    """The inverse of :func:`to_plain` over :func:`default_config`; raises KeyError on an unknown key."""

    def tuples(value: Any) -> Any:
        return tuple(tuples(v) for v in value) if isinstance(value, list) else value

    def merge(into: ConfigDict, values: dict[str, Any]) -> None:
        for k, v in values.items():
            if isinstance(into[k], ConfigDict):
                merge(into[k], v)
            else:
                into[k] = tuples(v)

    config = default_config()
    merge(config, plain)
    return config


def makes_deltas(config: ConfigDict) -> bool:
    """Whether versions are published as what changed, for which a trainer keeps the last one on its devices."""
    weights = config.weights
    return bool(weights.deltas and weights.dtype == "bfloat16" and not config.lora.rank and config.trainer.max_steps)


def published_copies(config: ConfigDict) -> int:
    """How many published versions a trainer keeps on its devices: NCCL sends the one before as well."""
    return makes_deltas(config) * (2 if config.weights.transport == "nccl" else 1)


def replays_experts(config: ConfigDict) -> bool:
    """Whether samplers hand over the experts that they chose. vLLM does where it has Triton: on GPUs."""
    able = config.sampler.backend == "jax" or config.sampler.platform in ("", "cuda")
    return bool(config.trainer.router_replay and able)
