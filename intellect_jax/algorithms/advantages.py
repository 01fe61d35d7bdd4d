"""Advantages from the rewards of one group of rollouts of the same prompt (numpy: the orchestrator calls them)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def group_mean(rewards: np.ndarray) -> np.ndarray:
    """Reward minus the group's mean, without the standard deviation (Dr. GRPO, arXiv 2503.20783; INTELLECT-3)."""
    return rewards - rewards.mean()


def group_std(rewards: np.ndarray) -> np.ndarray:
    """Reward minus mean, over the standard deviation (GRPO, arXiv 2402.03300, section 4.1.2)."""
    return (rewards - rewards.mean()) / (rewards.std() + 1e-6)


ADVANTAGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"group_mean": group_mean, "group_std": group_std}
