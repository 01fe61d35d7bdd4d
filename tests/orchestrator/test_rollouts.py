"""Conversations of several turns under Qwen3's rules: the real runner, renderer and environment; scripted answers."""

import asyncio
import dataclasses

import numpy as np
import pytest

from intellect_jax.config import default_config, env
from intellect_jax.data.chat import render_training
from intellect_jax.environments.base import Environment, Score
from intellect_jax.environments.worker import make_handler
from intellect_jax.orchestrator.batching import batch_metrics
from intellect_jax.orchestrator.generation import Generation
from intellect_jax.orchestrator.groups import Group
from intellect_jax.orchestrator.rollouts import RolloutRunner, to_samples
from intellect_jax.transport.jobs import JobError
from intellect_jax.types import Task
from tests.data.tokenizers import family_tokenizer

CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "sky"}}\n</tool_call>'
LOOK = "<think>\nI must look\n</think>\n\n" + CALL
SAY = "<think>\nI saw\n</think>\n\nblue"
TASK = Task(0, "sky", "train", 0)


class Sky(Environment):
    """A call of the tool gets a result, an answer one more question."""

    name = "sky"

    def size(self, split):
        return 1

    def prompt(self, split, index):
        return [{"role": "user", "content": "what colour is the sky?"}]

    def tools(self, split, index):
        return [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]

    async def reply(self, state, message):
        if "<tool_call>" in message["content"]:
            return [{"role": "tool", "content": "it is blue"}]
        return [{"role": "user", "content": "sure?"}]

    async def score(self, state):
        return Score(float(state["messages"][-1]["content"].endswith("blue")))


class Jobs:
    """The worker's own handler, without the process around it."""

    def __init__(self):
        self.handle = make_handler({"sky": Sky()})

    async def call(self, name, method, payload, timeout):
        try:
            return await self.handle(name, method, payload)
        except Exception as error:
            raise JobError(str(error)) from error


class Fleet:
    """Writes the scripted answers, a token a character, as the tokenizer never would; keeps what it was asked."""

    def __init__(self, tokenizer, answers):
        self.answers = [[t for c in a for t in tokenizer.encode(c)] + [tokenizer.eos_token_id] for a in answers]
        self.prompts, self.stop, self.conversations = [], None, []

    async def generate(self, token_ids, params, seed, conversation):
        self.prompts.append(list(token_ids))
        self.conversations.append(conversation)
        self.stop, ids = params["stop_token_ids"], self.answers[len(self.prompts) - 1]
        return Generation(ids, [-1.0] * len(ids), [0] * len(ids), "stop", 0, None)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return family_tokenizer(tmp_path_factory.mktemp("qwen3"), "qwen3")


@pytest.fixture
def config():
    config = default_config()
    config.envs = (env("sky"),)
    config.orchestrator.max_turns = 3
    return config


class Routing(Fleet):
    """Hands over experts as vLLM does: of all layers, numbered so that each place shows; at every second call none."""

    async def generate(self, token_ids, params, seed, conversation):
        generation = await super().generate(token_ids, params, seed, conversation)
        tokens = len(token_ids) + len(generation.token_ids) - 1
        routes = np.arange(tokens, dtype=np.int16)[:, None, None] + 1000 * np.arange(3, dtype=np.int16)[:, None]
        routed = np.broadcast_to(routes, (tokens, 3, 2)) if len(self.prompts) != 2 else None
        return dataclasses.replace(generation, routed_experts=routed, of_all_layers=True)


def play(config, tokenizer, answers, fleet=Fleet, **replay):
    fleet = fleet(tokenizer, answers)
    runner = RolloutRunner(config, tokenizer, fleet, Jobs(), **{"replay": False, **replay})

    async def main():
        return await runner.run(TASK, await runner.prompt(TASK), 0, 1.0)

    return asyncio.run(main()), fleet


def test_old_reasoning_forks_and_tool_results_do_not(config, tokenizer):
    rollout, fleet = play(config, tokenizer, [LOOK, SAY, "<think>\n\n</think>\n\nyes, blue"])
    assert rollout.error is None and rollout.reward == 1.0
    assert fleet.stop == [tokenizer.eos_token_id]
    first, second, third = fleet.prompts
    assert '"name": "look"' in tokenizer.decode(first)
    answers = fleet.answers
    assert second[: len(first) + len(answers[0])] == first + answers[0]  # as it was sampled
    assert third[: len(second)] != second and "I saw" not in tokenizer.decode(third)
    assert [n.role for n in rollout.nodes] == ["user", "assistant", "tool", "assistant", "user", "assistant"]
    assert [n.parent for n in rollout.nodes] == [None, 0, 1, 2, None, 4]

    kept, fresh = to_samples(rollout, config)
    assert kept.tokens.tolist() == second + answers[1] and fresh.tokens.tolist() == third + answers[2]
    assert kept.tokens[kept.loss_mask].tolist() == answers[0] + answers[1]
    assert fresh.tokens[fresh.loss_mask].tolist() == answers[2]
    for sample in (kept, fresh):
        np.testing.assert_array_equal(sample.sampler_logprobs, np.where(sample.loss_mask, -1, 0))
    assert batch_metrics([Group(TASK, [rollout], [])], {}, 0)["rollouts/forked"] == 1.0


def test_vllms_experts_run_along_the_tokens_of_the_layers_that_have_some(config, tokenizer):
    answers = [LOOK, SAY, "<think>\n\n</think>\n\nyes, blue"]
    rollout, _ = play(config, tokenizer, answers, Routing, replay=True, moe_layers=(1, 2))
    kept, fresh = to_samples(rollout, config)
    assert kept.routed_experts is None  # its second turn came without
    last = len(fresh.tokens) - 1
    assert fresh.routed_experts.shape == (last + 1, 2, 2) and (fresh.routed_experts[last] == -1).all()
    for layer in (0, 1):
        expected = np.arange(last)[:, None] + 1000 * (layer + 1)
        np.testing.assert_array_equal(fresh.routed_experts[:last, layer], np.repeat(expected, 2, axis=1))
    assert batch_metrics([Group(TASK, [rollout], [])], {}, 0, replay=True)["rollouts/without_routes"] == 1.0
    assert "rollouts/without_routes" not in batch_metrics([Group(TASK, [rollout], [])], {}, 0)


def test_supervised_records_give_the_same_texts(config, tokenizer):
    """The record says with reasoning_content and tool_calls what the policy said in its own words."""
    rollout, _ = play(config, tokenizer, [LOOK, SAY, "<think>\n\n</think>\n\nyes, blue"])
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}
    messages = [
        {"role": "user", "content": "what colour is the sky?"},
        {"role": "assistant", "content": "", "reasoning_content": "I must look", "tool_calls": [call]},
        {"role": "tool", "content": "it is blue"},
        {"role": "assistant", "content": "blue", "reasoning_content": "I saw"},
        {"role": "user", "content": "sure?"},
        {"role": "assistant", "content": "yes, blue"},
    ]
    ours = [(tokenizer.decode(s.tokens), tokenizer.decode(s.tokens[s.loss_mask])) for s in to_samples(rollout, config)]
    branches = render_training(tokenizer, messages, Sky().tools("train", 0))
    assert ours == [(tokenizer.decode(ids), tokenizer.decode(ids[mask])) for ids, mask in branches]


def test_without_forks_there_is_one_sample(config, tokenizer):
    config.orchestrator.max_turns = 2
    rollout, _ = play(config, tokenizer, [LOOK, SAY])
    assert len(to_samples(rollout, config)) == 1
    assert batch_metrics([Group(TASK, [rollout], [])], {}, 0)["rollouts/forked"] == 0.0


def test_what_the_template_refuses_costs_the_rollout(config, tmp_path):
    plain = family_tokenizer(tmp_path, "chatml")
    rollout, fleet = play(config, plain, [LOOK])
    assert rollout.reward is None and not fleet.prompts
    assert rollout.error == "ChatError: the chat template leaves out the tool 'look': take a template that knows tools"


def test_all_turns_of_a_rollout_are_one_conversation_and_rollouts_are_several(config, tokenizer):
    fleets = [play(config, tokenizer, [LOOK, SAY, "<think>\n\n</think>\n\nyes, blue"])[1] for _ in range(2)]
    assert [len(fleet.conversations) for fleet in fleets] == [3, 3]
    assert len({id(conversation) for fleet in fleets for conversation in fleet.conversations}) == 2
