import asyncio
import threading

import pytest

from intellect_jax.environments.base import Environment, Score, last_answer
from intellect_jax.environments.rubric import Rubric

STATE = {
    "split": "train",
    "index": 5,
    "messages": [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "early"},
        {"role": "user", "content": "again"},
        {"role": "assistant", "content": "late"},
        {"role": "user", "content": "done"},
    ],
    "info": {"goal": 3},
}


def length(answer):
    return len(answer)


async def goal(info, state):
    return info["goal"] + state["index"]


def messages_seen(messages):
    return len(messages)


def score(rubric, state=STATE):
    return asyncio.run(rubric.score(state))


def test_weighted_sum_of_plain_and_async_functions():
    got = score(Rubric([length, goal, messages_seen], weights=[0.5, 2, 0]))
    assert got == Score(0.5 * 4 + 2 * 8, {"length": 4, "goal": 8, "messages_seen": 5})


def test_weights_default_to_one():
    assert score(Rubric([length, goal])).reward == 12


def test_plain_functions_run_outside_the_event_loop():
    """Two that wait for each other finish only if neither holds up the loop."""
    meeting = threading.Barrier(2, timeout=10)

    def one():
        return meeting.wait() * 0 + 1

    def other():
        return meeting.wait() * 0 + 2

    assert score(Rubric([one, other])).reward == 3


def test_refusals():
    with pytest.raises(ValueError, match="2 functions need as many weights"):
        Rubric([length, goal], weights=[1])
    with pytest.raises(ValueError, match="names of their own"):
        Rubric([length, length])

    def curious(prompt):
        return 0

    with pytest.raises(ValueError, match="reward curious asks for prompt; there is state, messages, answer, info"):
        Rubric([curious])


def test_a_reward_that_is_not_finite_is_an_error():
    def broken():
        return float("nan")

    with pytest.raises(ValueError, match="reward broken is nan"):
        score(Rubric([length, broken]))


def test_last_answer():
    assert last_answer(STATE) == "late"
    assert last_answer({**STATE, "messages": STATE["messages"][:1]}) == ""


def test_an_environment_is_single_turn_by_default():
    class Nothing(Environment):
        name = "nothing"

        def size(self, split):
            return 1

        def prompt(self, split, index):
            return [{"role": "user", "content": "?"}]

        async def score(self, state):
            return Score(0.0)

    assert asyncio.run(Nothing().reply(STATE, STATE["messages"][-1])) == []
