"""How layers of two kinds are scanned: as repetitions of short blocks, so that depth costs no compile time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from intellect_jax.models.config import ModelConfig

STACKS = {False: "dense_layers", True: "moe_layers"}  # is it a mixture of experts → key of the parameter tree


@dataclass(frozen=True)
class Block:
    """``repeats`` times the layers ``kinds`` (True: mixture of experts), from layer ``first`` on."""

    kinds: tuple[bool, ...]
    repeats: int
    first: int
    offsets: tuple[int, int]  # layers before it in the dense stack, in the MoE stack

    @property
    def layers(self) -> int:
        return len(self.kinds) * self.repeats


@lru_cache(maxsize=64)
def blocks(cfg: ModelConfig) -> tuple[Block, ...]:
    """All layers in order: from each layer on, the repetition that covers most; of equal ones the shortest block."""
    pattern, found, first = cfg.moe_pattern, [], 0
    while first < len(pattern):
        kinds, repeats = _longest_repetition(pattern[first:])
        moe = sum(pattern[:first])
        found.append(Block(kinds, repeats, first, (first - moe, moe)))
        first += found[-1].layers
    return tuple(found)


def _longest_repetition(pattern: tuple[bool, ...]) -> tuple[tuple[bool, ...], int]:
    best, repeats = pattern[:1], _repeats(pattern, 1)
    for period in range(2, len(pattern) // 2 + 1):
        times = _repeats(pattern, period)
        if times > 1 and times * period > repeats * len(best):
            best, repeats = pattern[:period], times
    return best, repeats


def _repeats(pattern: tuple[bool, ...], period: int) -> int:
    times = 1
    while pattern[times * period : (times + 1) * period] == pattern[:period]:
        times += 1
    return times
