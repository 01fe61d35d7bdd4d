"""config.json, both ways: what is shared by all families."""

from __future__ import annotations

from dataclasses import MISSING, asdict, fields
from typing import Any

from intellect_jax.models.config import ModelConfig


class HFConfig:
    """A parsed config.json. What it asks for and the policy cannot do is refused by name, never ignored."""

    def __init__(self, values: dict[str, Any]):
        self.values = {**values, **_rope(values)}
        self.require("quantization_config", None)

    def require(self, key: str, supported: Any) -> None:
        """Raises ValueError when ``key`` is given and differs from the only supported value."""
        if self.values.get(key, supported) != supported:
            raise ValueError(f"config.json: {key}={self.values[key]!r} is not supported (only {supported!r})")

    def read(self, defaults: dict[str, Any]) -> ModelConfig:
        """The shape of the policy; raises ValueError naming the keys that are missing and have no default."""
        values = {**defaults, **{k: v for k, v in self.values.items() if v is not None}}
        if "head_dim" not in values and {"hidden_size", "num_attention_heads"} <= values.keys():
            values["head_dim"] = values["hidden_size"] // values["num_attention_heads"]
        names = [field.name for field in fields(ModelConfig)]
        missing = [f.name for f in fields(ModelConfig) if f.name not in values and f.default is MISSING]
        if missing:
            raise ValueError(f"config.json lacks {', '.join(missing)}")
        return ModelConfig(**{name: values[name] for name in names if name in values})


def _rope(values: dict[str, Any]) -> dict[str, Any]:
    """RoPE's keys at the top level, wherever the file has them; raises ValueError for scaled RoPE."""
    rope = {**(values.get("rope_scaling") or {}), **(values.get("rope_parameters") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"config.json: rope_type={kind!r} is not supported (only 'default')")
    return {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}


def write(cfg: ModelConfig, model_type: str, architecture: str, extra: dict[str, Any]) -> dict[str, Any]:
    """The content of config.json, in the form of published checkpoints (read by old and new transformers and vLLM)."""
    return {
        "architectures": [architecture],
        "model_type": model_type,
        **asdict(cfg),
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "rope_scaling": None,
        "use_cache": True,
        **extra,
    }
