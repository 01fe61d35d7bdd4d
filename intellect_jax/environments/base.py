"""The environment protocol: what a package in ``envs/`` implements, and the state that travels with every call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, TypedDict

from intellect_jax.data.messages import Message, Tool


class State(TypedDict):
    """One conversation. JSON throughout: it travels with each call, so that workers keep nothing between calls."""

    split: str  # "train" or "eval"
    index: int  # which example of the split
    messages: list[Message]  # the whole conversation so far
    info: dict[str, Any]  # the environment's own notes, for `reply` to change and `score` to read


@dataclass(frozen=True)
class Score:
    """What a finished conversation earned. ``metrics`` are only logged."""

    reward: float
    metrics: dict[str, float] = field(default_factory=dict)


class Environment(ABC):
    """Prompts, the environment's turns, and the score. Calls of many rollouts run at once in one event loop.

    Example ``index`` of ``split`` must be the same prompt in every process. An async method that blocks blocks its
    whole worker: give slow synchronous work to ``asyncio.to_thread``.
    """

    name: str

    @abstractmethod
    def size(self, split: str) -> int:
        """Number of examples in a split."""

    @abstractmethod
    def prompt(self, split: str, index: int) -> list[Message]:
        """The messages that open the conversation about one example."""

    def tools(self, split: str, index: int) -> list[Tool]:
        """The tools of the conversation about one example, as JSON schemas in OpenAI's form; none by default.

        The chat template tells the policy of them. Calls stand in the policy's answer as text, in the template's form:
        `reply` reads them, and answers with messages of role "tool".
        """
        return []

    async def reply(self, state: State, message: Message) -> list[Message]:
        """The environment's turn after the policy's ``message`` (already the last of ``state``); [] ends the
        conversation, which is the default: a single turn."""
        return []

    @abstractmethod
    async def score(self, state: State) -> Score:
        """The reward of a finished conversation."""


def last_answer(state: State) -> str:
    """Text of the policy's last message; empty when it said nothing."""
    answers = (m["content"] for m in reversed(state["messages"]) if m["role"] == "assistant")
    return next(answers, "")
