"""One rollout: prompt, generate, let the environment answer, score; tokens in, tokens out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import xxhash
from ml_collections import ConfigDict

from intellect_jax.data.chat import History, advance, flatten, split_answer
from intellect_jax.data.messages import ChatError, Message, Tool
from intellect_jax.data.template import endings
from intellect_jax.orchestrator.fleet import Fleet, FleetError, RequestRefused
from intellect_jax.orchestrator.generation import BadGeneration, Generation
from intellect_jax.orchestrator.servers import Conversation
from intellect_jax.transport.jobs import JobError, JobPool, JobTimeout
from intellect_jax.types import Node, Rollout, Sample, Task

# What costs a rollout and never the step.
FAILURES = (BadGeneration, ChatError, FleetError, RequestRefused, TimeoutError, JobError, JobTimeout)


class Opening(TypedDict):
    """How the conversations about a task begin."""

    messages: list[Message]
    tools: list[Tool]


def request_seed(run_seed: int, task: Task, sample_index: int) -> int:
    """The sampler's seed of one rollout: a rerun samples the same; 31 bits."""
    key = f"{run_seed}/{task.split}/{task.env}/{task.task_id}/{sample_index}"
    return xxhash.xxh3_64_intdigest(key.encode()) & 0x7FFFFFFF


@dataclass
class RolloutRunner:
    """Runs rollouts against the fleet and the environment workers; holds nothing of a single rollout."""

    config: ConfigDict
    tokenizer: Any
    fleet: Fleet
    jobs: JobPool
    replay: bool  # ask the sampler for the experts of each token
    moe_layers: tuple[int, ...] = ()  # those among all layers that are mixtures of experts

    async def prompt(self, task: Task) -> Opening:
        """How the task's conversations begin."""
        return await self._env(task, "prompt", {"split": task.split, "index": task.index})

    async def run(self, task: Task, opening: Opening, sample_index: int, temperature: float) -> Rollout:
        """Plays one conversation to its end; a failure is data in ``Rollout.error``."""
        rollout = Rollout(task, sample_index, lineage=-1, temperature=temperature, started=time.time())
        state = {"split": task.split, "index": task.index, "messages": list(opening["messages"]), "info": {}}
        try:
            await self._converse(rollout, state, opening["tools"])
            score = await self._env(task, "score", {"state": state})
            rollout.reward, rollout.metrics = float(score["reward"]), score["metrics"]
        except FAILURES as error:
            rollout.error = f"{type(error).__name__}: {error}"
        rollout.finished = time.time()
        return rollout

    async def _converse(self, rollout: Rollout, state: dict[str, Any], tools: list[Tool]) -> None:
        # Its turns share a server, whose prefix cache then has all but the newest messages. The first turns of a group
        # do not: they come at once, and their common prompt costs less than one full server beside idle ones.
        history, conversation = None, Conversation()
        for turn in range(self.config.orchestrator.max_turns):
            history = self._ask(rollout, history, state["messages"], tools)
            generation = await self._generate(rollout, history.ids, conversation)
            text, end = split_answer(self.tokenizer, generation.token_ids)
            history = history.plus(generation.token_ids, text + end)
            self._append_answer(rollout, generation, text)
            state["messages"].append({"role": "assistant", "content": text})
            if turn + 1 == self.config.orchestrator.max_turns or generation.finish_reason == "length":
                return
            reply = await self._env(rollout.task, "reply", {"state": state})
            state["info"] = reply["info"]
            if not reply["messages"]:
                return
            state["messages"].extend(reply["messages"])

    def _ask(self, rollout: Rollout, history: History | None, messages: list[Message], tools: list[Tool]) -> History:
        """Appends the new messages by exact prefix, or forks a branch where the template rewrites history."""
        longer, forked = advance(self.tokenizer, history, messages, tools)
        kept, parent = (0, None) if forked or history is None else (len(history.ids), len(rollout.nodes) - 1)
        last = messages[-1]
        rollout.nodes.append(Node(last["role"], last["content"], longer.ids[kept:], parent))
        return longer

    async def _generate(self, rollout: Rollout, history: list[int], conversation: Conversation) -> Generation:
        params = {
            "max_tokens": self.config.orchestrator.max_new_tokens,
            "temperature": rollout.temperature,
            "stop_token_ids": sorted(endings(self.tokenizer).ids),
            "return_routed_experts": self.replay and self.config.sampler.backend == "jax",  # vLLM is started to
        }
        seed = request_seed(self.config.seed, rollout.task, rollout.sample_index)
        generation = await self.fleet.generate(history, params, seed, conversation)
        if rollout.lineage not in (-1, generation.lineage):
            raise BadGeneration(f"turns of one rollout come from lineages {rollout.lineage} and {generation.lineage}")
        rollout.lineage = generation.lineage
        rollout.finish_reason = generation.finish_reason
        return generation

    def _append_answer(self, rollout: Rollout, generation: Generation, text: str) -> None:
        parent = len(rollout.nodes) - 1
        answer = Node("assistant", text, generation.token_ids, parent, True, generation.logprobs, generation.versions)
        rollout.nodes.append(answer)
        routes = generation.routed_experts
        if self.replay and routes is not None:
            _share_routes(rollout, routes[:, self.moe_layers] if generation.of_all_layers else routes)

    async def _env(self, task: Task, method: str, payload: dict[str, Any]) -> Any:
        return await self.jobs.call(task.env, method, payload, timeout=self.config.environments.timeout)


def _share_routes(rollout: Rollout, routes: np.ndarray) -> None:
    """Gives the current branch's nodes their experts, int16 [history, L, K]: those of the latest pass over them.

    The last sampled token was never fed back, so it has none yet: -1 until a later turn reads it.
    """
    path = rollout.branches()[-1]
    missing = np.full((1, *routes.shape[1:]), -1, np.int16)
    padded, start = np.concatenate([routes, missing]), 0
    for node in path:
        part = padded[start : start + len(node.token_ids)]
        old = part if node.routed_experts is None else node.routed_experts
        node.routed_experts = np.where(part < 0, old, part)
        start += len(node.token_ids)


def to_samples(rollout: Rollout, config: ConfigDict) -> list[Sample]:
    """Every branch of a scored rollout as one training sample."""
    return [_sample(path, rollout, config) for path in rollout.branches()]


def _sample(path: list[Node], rollout: Rollout, config: ConfigDict) -> Sample:
    tokens, sampled = flatten((node.token_ids, node.sampled) for node in path)
    routes = [node.routed_experts for node in path]
    known = [r for r in routes if r is not None]
    return Sample(
        tokens=tokens,
        loss_mask=sampled,
        advantages=np.where(sampled, rollout.advantage, 0.0).astype(np.float32),
        sampler_logprobs=_along(path, "logprobs", 0.0, np.float32),
        versions=_along(path, "versions", -1, np.int32),
        temperature=rollout.temperature,
        ce_weight=config.algorithm.ce_coef,
        routed_experts=np.concatenate(known) if known and len(known) == len(routes) else None,
    )


def _along(path: list[Node], name: str, fill: float, dtype: Any) -> np.ndarray:
    parts = [getattr(node, name) if node.sampled else [fill] * len(node.token_ids) for node in path]
    return np.concatenate([np.asarray(part, dtype) for part in parts])
