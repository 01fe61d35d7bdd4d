"""Which linear maps of a policy LoRA adapts (Hu et al., arXiv 2106.09685), as names and numbers. No JAX.

An adapted kernel W becomes W + alpha / rank · A B. The factors lie beside it in the parameter tree, below ``lora``.
"""

from __future__ import annotations

from dataclasses import dataclass

from ml_collections import ConfigDict

from intellect_jax.errors import UserError
from intellect_jax.models.config import ModelConfig
from intellect_jax.trees import TreePath

TARGETS = ("attention", "dense", "experts")


@dataclass(frozen=True)
class Lora:
    """Hashable description of a policy's adapters; see ``config.lora``."""

    rank: int
    alpha: float
    targets: tuple[str, ...]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @classmethod
    def from_config(cls, lora: ConfigDict) -> Lora | None:
        """None where the ``lora`` section turns it off."""
        return cls(lora.rank, float(lora.alpha), tuple(t for t in TARGETS if t in lora.targets)) if lora.rank else None

    def adapts(self, path: TreePath) -> bool:
        """Whether the array at ``path`` of the parameter tree has an adapter."""
        return target_of(path) in self.targets


def target_of(path: TreePath) -> str | None:
    """The target to which the array at ``path`` belongs; None for what is never adapted: embedding, head, router,
    norms and biases."""
    if "experts" in path:
        return "experts"
    if path[-1] != "kernel":
        return None
    if "attention" in path:
        return "attention"
    return "dense" if "mlp" in path or "shared" in path else None


def factor_paths(path: TreePath) -> tuple[TreePath, TreePath]:
    """Where A and B of the adapted array at ``path`` lie. An expert's gate and up share one A: transformers keeps the
    two as one tensor, of which an adapter then is one A and one B."""
    *place, last = path
    if last == "kernel":
        return (*place, "lora", "a"), (*place, "lora", "b")
    shared = "gate_up" if last in ("gate", "up") else last
    return (*place, "lora", f"{shared}_a"), (*place, "lora", f"{last}_b")


def is_b(path: TreePath) -> bool:
    """Whether a factor's path is that of a B."""
    return path[-1].endswith("b")


def stack_axes(path: TreePath) -> int:
    """Leading axes of an adapted array, and of its factors, over which it is repeated: layers, then experts."""
    return 2 if "experts" in path else 1


def input_axes(path: TreePath) -> int:
    """Axes of an adapted array, after the stack, that its input has; attention's output reads [heads, head width]."""
    return 2 if path[-2] == "o" else 1


def refuse_absent(lora: Lora | None, cfg: ModelConfig) -> None:
    """Raises UserError for a target of which the policy has nothing."""
    if lora is None:
        return
    shared = cfg.num_moe_layers and cfg.n_shared_experts
    lacking = {
        "dense": None if cfg.num_dense_layers or shared else "neither dense layers nor shared experts",
        "experts": None if cfg.num_moe_layers else "no routed experts",
    }
    for target in lora.targets:
        if lacking.get(target):
            raise UserError(f"lora.targets={lora.targets!r}: this {cfg.family} has {lacking[target]}: drop {target!r}")
