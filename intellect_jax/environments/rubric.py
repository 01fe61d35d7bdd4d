"""Rubrics: a reward as the weighted sum of small functions."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from intellect_jax.environments.base import Score, State, last_answer

ARGUMENTS: dict[str, Callable[[State], Any]] = {
    "state": lambda state: state,
    "messages": lambda state: state["messages"],
    "answer": last_answer,
    "info": lambda state: state["info"],
}


class Rubric:
    """Reward functions and their weights; weight 0 makes a function a metric only.

    A function names what it wants among ``state``, ``messages``, ``answer`` (text of the policy's last message) and
    ``info``, and returns a number. It may be async; a plain function runs in a thread, so that it holds up nobody.
    Every function's value is also a metric under the function's name.
    """

    def __init__(self, functions: Sequence[Callable[..., Any]], weights: Sequence[float] | None = None):
        """``weights`` default to 1 each. Raises ValueError on another count, a repeated name or an unknown argument."""
        self._functions = {f.__name__: f for f in functions}
        self._weights = [1.0] * len(functions) if weights is None else list(weights)
        if len(self._functions) != len(functions) or len(self._weights) != len(functions):
            raise ValueError(f"{len(functions)} functions need as many weights and names of their own")
        for name, function in self._functions.items():
            unknown = _arguments(function) - set(ARGUMENTS)
            if unknown:
                raise ValueError(
                    f"reward {name} asks for {', '.join(sorted(unknown))}; there is {', '.join(ARGUMENTS)}"
                )

    async def score(self, state: State) -> Score:
        """Weighted sum of all functions, run together. Raises ValueError naming one whose value is not finite."""
        values = await asyncio.gather(*(self._value(f, state) for f in self._functions.values()))
        metrics = dict(zip(self._functions, values, strict=True))
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise ValueError(f"reward {name} is {value}")
        return Score(sum(w * v for w, v in zip(self._weights, values, strict=True)), metrics)

    async def _value(self, function: Callable[..., Any], state: State) -> float:
        arguments = {name: ARGUMENTS[name](state) for name in _arguments(function)}
        if inspect.iscoroutinefunction(function):
            return float(await function(**arguments))
        return float(await asyncio.to_thread(function, **arguments))


@cache
def _arguments(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)
