"""config.json, both ways: what is shared by all families.

A family says which fields of :class:`ModelConfig` its config files hold beside the common ones (``KEYS``: field → key)
and which may be left out (``DEFAULTS``); what the architecture fixes is in ``models.config.TRAITS``.
"""

from __future__ import annotations

from dataclasses import MISSING, asdict, fields
from typing import Any

from intellect_jax.models.config import TRAITS, ModelConfig
from intellect_jax.models.rope_scaling import KEYS as SCALINGS
from intellect_jax.models.rope_scaling import RopeScaling

# In the files of every family, under their own names.
COMMON = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "attention_bias",
    "rope_theta",
    "rms_norm_eps",
    "tie_word_embeddings",
    "max_position_embeddings",
    "initializer_range",
)
# Fields that files of any family may leave out, with the value that transformers then assumes.
DEFAULTS: dict[str, Any] = {
    "attention_bias": False,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
}
_ORIGINAL = "original_max_position_embeddings"
_ROPE_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}  # beside those of the scaling


class HFConfig:
    """A parsed config.json. What it asks for and the policy cannot do is refused by name, never ignored."""

    def __init__(self, values: dict[str, Any]):
        rope = values.get("rope_scaling") or values.get("rope_parameters") or {}
        above = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
        self.values = {**values, **above}
        self.rope = rope
        self.require("quantization_config", None)
        self.require("hidden_act", "silu")
        self.require("attention_dropout", 0.0)

    def require(self, key: str, supported: Any) -> None:
        """Raises ValueError when ``key`` is given and differs from the only supported value."""
        if self.values.get(key, supported) != supported:
            raise ValueError(f"config.json: {key}={self.values[key]!r} is not supported (only {supported!r})")

    def rename(self, other: str, key: str) -> None:
        """Takes ``key`` from ``other`` where the file has it under that name."""
        self.values = {key: self.values[other], **self.values} if other in self.values else self.values

    def require_full_attention(self) -> None:
        """Raises ValueError for sliding windows."""
        self.require("use_sliding_window", False)
        for kind in self.values.get("layer_types") or ():
            if kind != "full_attention":
                raise ValueError(f"config.json: layer_types has {kind!r}, not supported (only 'full_attention')")

    def read(self, family: str, keys: dict[str, str], defaults: dict[str, Any]) -> ModelConfig:
        """The shape of a policy whose files hold the COMMON fields and ``keys`` (field → key).

        Raises:
            ValueError: naming keys that are missing and have no default, or RoPE that is not supported.
        """
        given = {name: self.values.get(keys.get(name, name)) for name in (*COMMON, *keys)}
        values = {**defaults, **{name: value for name, value in given.items() if value is not None}}
        values |= {**TRAITS[family], "family": family}
        if "head_dim" not in values and {"hidden_size", "num_attention_heads"} <= values.keys():
            values["head_dim"] = values["hidden_size"] // values["num_attention_heads"]
        lost = [field.name for field in fields(ModelConfig) if field.name not in values and field.default is MISSING]
        if lost:
            raise ValueError(f"config.json lacks {', '.join(keys.get(name, name) for name in lost)}")
        return ModelConfig(**values, rope_scaling=self._rope_scaling())

    def _rope_scaling(self) -> RopeScaling | None:
        kind = self.rope.get("rope_type", self.rope.get("type", "default"))
        if kind not in SCALINGS:
            raise ValueError(f"config.json: rope_type={kind!r} is not supported (only {', '.join(SCALINGS)})")
        needed, optional = SCALINGS[kind]
        rope = {key: value for key, value in self.rope.items() if value is not None and key not in _ROPE_KEYS}
        if _ORIGINAL in needed:  # in transformers' order of preference
            places = (self.values.get(_ORIGINAL), rope.get(_ORIGINAL), self.values.get("max_position_embeddings"))
            rope[_ORIGINAL] = next((place for place in places if place is not None), None)
        if unknown := sorted(rope.keys() - {*needed, *optional}):
            raise ValueError(f"config.json: {kind} RoPE with {', '.join(unknown)} is not supported")
        if lost := sorted(set(needed) - rope.keys()):
            raise ValueError(f"config.json: {kind} RoPE lacks {', '.join(lost)}")
        return None if kind == "default" else RopeScaling(kind, **rope)


def specific(cfg: ModelConfig, keys: dict[str, str]) -> dict[str, Any]:
    """The keys of config.json that hold a family's own fields."""
    return {key: getattr(cfg, name) for name, key in keys.items()}


def write(cfg: ModelConfig, model_type: str, architecture: str, extra: dict[str, Any]) -> dict[str, Any]:
    """The content of config.json, in the form of published checkpoints (read by old and new transformers and vLLM)."""
    scaling = cfg.rope_scaling
    return {
        "architectures": [architecture],
        "model_type": model_type,
        **{name: getattr(cfg, name) for name in COMMON},
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "rope_scaling": scaling and {key: value for key, value in asdict(scaling).items() if value is not None},
        "use_cache": True,
        **extra,
    }
