"""The run's stream of training tasks: which environment and example comes next."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from intellect_jax.types import Task


@lru_cache(maxsize=64)
def _order(seed: int, env: int, epoch: int, size: int) -> np.ndarray:
    """The order of one environment's examples in one epoch."""
    return np.random.default_rng([seed, env, epoch]).permutation(size)


@dataclass
class Curriculum:
    """Task k depends on the seed and k alone; environments alternate by their ratios, examples by shuffled epochs.

    ``picked`` counts the tasks taken from each environment so far and is all the state there is.
    """

    seed: int
    ratios: dict[str, float]  # environment -> share of the prompts
    sizes: dict[str, int]  # environment -> training examples
    picked: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.picked = {name: self.picked.get(name, 0) for name in self.ratios}

    def next(self) -> Task:
        """The next task: from the environment that lags its ratio most."""
        taken = sum(self.picked.values())
        total = sum(self.ratios.values())
        env = max(self.ratios, key=lambda name: self.ratios[name] / total * (taken + 1) - self.picked[name])
        epoch, place = divmod(self.picked[env], self.sizes[env])
        order = _order(self.seed, list(self.ratios).index(env), epoch, self.sizes[env])
        self.picked[env] += 1
        return Task(task_id=taken, env=env, split="train", index=int(order[place]))

    def state(self) -> dict[str, Any]:
        return dict(self.picked)
