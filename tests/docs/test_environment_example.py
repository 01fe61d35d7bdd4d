"""The environment of docs/environments.md, written to a folder as the page says, imported and played."""

import asyncio
import sys

import pytest

from intellect_jax.environments.loader import load_environment
from intellect_jax.environments.worker import make_handler
from tests.docs.pages import blocks


@pytest.fixture
def add_up(tmp_path, monkeypatch):
    (example,) = (block for block in blocks("python") if block.text.startswith("# envs/add_up/add_up.py"))
    (tmp_path / "add_up.py").write_text(example.text)
    monkeypatch.syspath_prepend(tmp_path)
    yield load_environment("add_up", largest=20)
    sys.modules.pop("add_up")


def play(environment, *answers: str, index: int = 0) -> tuple[dict, list[str]]:
    """(score, the environment's turns) of a conversation, through the calls that a worker answers."""
    call = make_handler({"add_up": environment})

    async def converse():
        prompt = await call("add_up", "prompt", {"split": "train", "index": index})
        state = {"split": "train", "index": index, "messages": list(prompt), "info": {}}
        said = []
        for answer in answers:
            state["messages"].append({"role": "assistant", "content": answer})
            reply = await call("add_up", "reply", {"state": state})
            state["info"] = reply["info"]
            state["messages"] += reply["messages"]
            said += [message["content"] for message in reply["messages"]]
        return await call("add_up", "score", {"state": state}), said

    return asyncio.run(converse())


def test_a_right_answer_earns_all(add_up):
    total = sum(add_up.numbers("train", 0))
    assert add_up.prompt("train", 0)[0]["content"].count("+") == 1
    assert play(add_up, str(total)) == ({"reward": 1.0, "metrics": {"correct": 1.0, "hints": 0.0}}, [])


def test_a_wrong_answer_gets_one_hint_that_costs(add_up):
    total = sum(add_up.numbers("train", 0))
    score, said = play(add_up, str(total + 1), str(total))
    assert said == ["too large"] and score["reward"] == pytest.approx(0.8)
    assert play(add_up, "what?", "no idea")[1] == ["a number, please"]


def test_no_prompt_is_in_both_splits(add_up):
    prompts = {split: {add_up.numbers(split, i) for i in range(200)} for split in ("train", "eval")}
    assert not prompts["train"] & prompts["eval"]
