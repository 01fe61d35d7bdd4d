"""What the makers' datasheets say of the device here. No JAX."""

from __future__ import annotations

from launch.plan.targets import TARGETS

_KINDS = {  # JAX's name of a kind of device → its name in the table of targets
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
    "NVIDIA B200": "b200",
    "TPU v5": "v5p",  # v5e is "TPU v5 lite"
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
}
_DTYPES = {"bfloat16": "bf16", "float32": "f32"}


def datasheet(kind: str, dtype: str) -> float | None:
    """Dense FLOP/s of one device in ``dtype``; None for kinds that the table lacks."""
    return TARGETS[_KINDS[kind]].flops(_DTYPES[dtype]) if kind in _KINDS else None
