"""Into the policy and out of it again: Hugging Face folders, Orbax checkpoints, tokenizers.

    from intellect_jax.bridge import load_pretrained, save_pretrained

The names below are imported when they are first used, so that processes without JAX can use the rest of the package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intellect_jax.bridge.adapter import load_adapter, save_adapter
    from intellect_jax.bridge.load import load_pretrained
    from intellect_jax.bridge.policy import Policy
    from intellect_jax.bridge.save import save_pretrained

__all__ = ["Policy", "load_adapter", "load_pretrained", "save_adapter", "save_pretrained"]

_HOMES = {
    "Policy": "policy",
    "load_adapter": "adapter",
    "load_pretrained": "load",
    "save_adapter": "adapter",
    "save_pretrained": "save",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
