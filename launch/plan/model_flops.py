"""The batch that a plan is made for, and its model FLOPs by part."""

from __future__ import annotations

from dataclasses import dataclass

from intellect_jax.models.config import ModelConfig
from intellect_jax.models.flops import FORWARD_AND_BACKWARD, WEIGHTS_FROZEN, Work, forward_flops


@dataclass(frozen=True)
class Batch:
    """What a step trains on. Every row is full and one segment: the longest context that the config allows."""

    microbatches: int
    rows: int  # of a microbatch
    length: int  # tokens of a row
    members: float = 1.0  # share of the tokens that have a loss

    @property
    def tokens(self) -> int:
        return self.microbatches * self.rows * self.length

    @property
    def work(self) -> Work:
        return Work(self.tokens, self.tokens * (self.length + 1) // 2, round(self.tokens * self.members))


def step_flops(cfg: ModelConfig, batch: Batch, *, frozen: bool = False) -> dict[str, float]:
    """FLOPs of a whole step by the parts of models/flops.py; ``frozen``: only adapters train."""
    weights = WEIGHTS_FROZEN if frozen else FORWARD_AND_BACKWARD
    return {
        part: float((FORWARD_AND_BACKWARD if part == "attention" else weights) * flops)
        for part, flops in forward_flops(cfg, batch.work).items()
    }
