"""The environment worker: loads every environment of the config and serves the orchestrator's calls to them.

Methods, with their payload and JSON result:

- ``size`` {split} → int
- ``prompt`` {split, index} → {messages, tools}: how the conversation opens
- ``reply`` {state} → {messages, info}: the environment's turn after the last of ``state["messages"]``, none when the
  conversation is over, and the state's ``info`` as the environment left it
- ``score`` {state} → {reward, metrics}
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from intellect_jax.config import to_plain
from intellect_jax.data.messages import ChatError, checked_messages, checked_tools
from intellect_jax.environments.base import Environment
from intellect_jax.environments.loader import load_environment
from intellect_jax.monitor import watchdog
from intellect_jax.transport.job_server import Handler, JobServer

logger = logging.getLogger(__name__)


def main(config: ConfigDict, run_dir: Path, index: int) -> int:
    """Serves until SIGTERM or Ctrl-C, then returns 0. A call that blocks the worker ends the process with code 70."""
    environments = {entry["name"]: load_environment(entry["name"], **entry["args"]) for entry in to_plain(config.envs)}
    server = JobServer(
        config.environments.address, index, make_handler(environments), slots=config.environments.concurrency
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    watchdog.rest("serving calls")  # the job server itself watches over calls that block it
    logger.info("serves %s", ", ".join(environments))
    server.run()
    return 0


def make_handler(environments: dict[str, Environment]) -> Handler:
    """The calls that the worker answers, over environments by name."""

    async def handle(env: str, method: str, payload: dict[str, Any]) -> Any:
        return await METHODS[method](environments[env], payload)

    return handle


async def _size(environment: Environment, payload: dict[str, Any]) -> int:
    return await asyncio.to_thread(environment.size, payload["split"])


async def _prompt(environment: Environment, payload: dict[str, Any]) -> Any:
    messages = await asyncio.to_thread(environment.prompt, payload["split"], payload["index"])
    tools = await asyncio.to_thread(environment.tools, payload["split"], payload["index"])
    if not messages:
        raise ChatError("prompt() has no messages")
    return {"messages": checked_messages("prompt()", messages), "tools": checked_tools("tools()", tools)}


async def _reply(environment: Environment, payload: dict[str, Any]) -> Any:
    state = payload["state"]
    messages = checked_messages("reply()", await environment.reply(state, state["messages"][-1]))
    return {"messages": messages, "info": state["info"]}


async def _score(environment: Environment, payload: dict[str, Any]) -> Any:
    score = await environment.score(payload["state"])
    if not math.isfinite(score.reward):
        raise ValueError(f"the reward is {score.reward}")
    return asdict(score)


METHODS: dict[str, Callable[[Environment, dict[str, Any]], Awaitable[Any]]] = {
    "size": _size,
    "prompt": _prompt,
    "reply": _reply,
    "score": _score,
}
