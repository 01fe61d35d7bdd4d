"""The worker's entry point as a real process, called through the job pool."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys

import pytest

from intellect_jax.config import default_config, env, to_plain
from intellect_jax.transport.jobs import JobError, JobPool, JobTimeout

RUN = """
import json, sys
from pathlib import Path
from intellect_jax.config import from_plain
from intellect_jax.environments.worker import main
path = Path(sys.argv[1])
code = main(from_plain(json.loads(path.read_text())), path.parent, 0)
assert "jax" not in sys.modules
sys.exit(code)
"""

GUESSING = '''
import time
from intellect_jax.environments.base import Environment, Score, last_answer
from intellect_jax.environments.rubric import Rubric

class Guessing(Environment):
    """Guess the number; the environment answers higher or lower, at most three times."""
    name = "guessing"

    def __init__(self, secret):
        self.secret = secret

    def size(self, split):
        return 1

    def prompt(self, split, index):
        return [{"role": "user", "content": "guess"}] if index < 2 else ["guess"]

    def tools(self, split, index):
        return [{"type": "function", "function": {"name": "guess"}}] if index != 1 else [{"name": "guess"}]

    async def reply(self, state, message):
        state["info"]["guesses"] = state["info"].get("guesses", 0) + 1
        guess = int(message["content"])
        if guess == self.secret or state["info"]["guesses"] == 3:
            return []
        return [{"role": "user", "content": "higher" if guess < self.secret else "lower"}]

    async def score(self, state):
        def hangs_on_13(answer):
            while answer == "13":
                time.sleep(1)
            return float(answer == str(self.secret))
        if last_answer(state) == "0":
            return Score(float("inf"))
        return await Rubric([hangs_on_13]).score(state)

def load_environment(secret):
    return Guessing(secret)
'''


@pytest.fixture
def start(tmp_path):
    """Starts the worker over two environments, one of them a package on the path; gives (address, start)."""
    (tmp_path / "guessing.py").write_text(GUESSING)
    config = default_config()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        config.environments.address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    config.envs = (env("reverse_text", num_train=7, num_eval=3), env("guessing", secret=5))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_plain(config)))
    environ = os.environ | {"PYTHONPATH": str(tmp_path)}

    def start():
        return subprocess.Popen([sys.executable, "-c", RUN, path], env=environ, stderr=subprocess.PIPE, text=True)

    return config.environments.address, start


@contextlib.contextmanager
def running(start):
    process = start()
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=10)


def state(messages, split="train", **info):
    return {"state": {"split": split, "index": 0, "messages": messages, "info": info}}


def say(text):
    return [{"role": "assistant", "content": text}]


def test_every_method_over_two_environments(start):
    address, start = start

    async def calls(pool):
        async def call(env, method, **payload):
            return await pool.call(env, method, payload, 20.0)

        assert await call("reverse_text", "size", split="train") == 7
        assert await call("reverse_text", "size", split="eval") == 3
        opening = await call("reverse_text", "prompt", split="eval", index=0)
        (prompt,) = opening["messages"]
        assert opening["tools"] == []
        conversation = state([prompt, *say(prompt["content"][::-1])], split="eval")
        assert await call("reverse_text", "reply", **conversation) == {"messages": [], "info": {}}
        score = await call("reverse_text", "score", **conversation)
        assert score == {"reward": 1.0, "metrics": {"similarity": 1.0, "exact_match": 1.0}}
        opening = await call("guessing", "prompt", split="train", index=0)
        tool = {"type": "function", "function": {"name": "guess"}}
        assert opening == {"messages": [{"role": "user", "content": "guess"}], "tools": [tool]}
        answer = await call("guessing", "reply", **state(say("3"), guesses=1))
        assert answer == {"messages": [{"role": "user", "content": "higher"}], "info": {"guesses": 2}}
        answer = await call("guessing", "reply", **state(say("9"), guesses=2))
        assert answer == {"messages": [], "info": {"guesses": 3}}
        assert (await call("guessing", "score", **state(say("5"))))["reward"] == 1
        with pytest.raises(JobError, match=r"guessing.score: ValueError: the reward is inf"):
            await call("guessing", "score", **state(say("0")))
        with pytest.raises(JobError, match=r"reverse_text.prompt: IndexError: eval has 3 examples"):
            await call("reverse_text", "prompt", split="eval", index=3)
        with pytest.raises(
            JobError, match=r"guessing.prompt: ChatError: tools\(\)\[0\] must be {\"type\": \"function\""
        ):
            await call("guessing", "prompt", split="train", index=1)
        with pytest.raises(JobError, match=r"guessing.prompt: ChatError: prompt\(\)\[0\] must be an object with role"):
            await call("guessing", "prompt", split="train", index=2)

    async def main():
        with running(start) as process:
            async with JobPool(address) as pool:
                await calls(pool)
            process.terminate()
            _, log = process.communicate(timeout=10)
            assert process.returncode == 0
            assert "Task was destroyed" not in log and log.count("Traceback") == 4, log  # the errors above

    asyncio.run(main())


def test_a_reward_that_never_returns_costs_its_call_and_a_restart(start):
    address, start = start

    async def main():
        with running(start) as process:
            async with JobPool(address) as pool:
                with pytest.raises(JobTimeout, match=r"guessing.score took longer than 0.5 s"):
                    await pool.call("guessing", "score", state(say("13")), 0.5)
                assert await asyncio.to_thread(process.wait, 20) == 70
                log = process.stderr.read()
                assert "guessing.score still runs beyond its 0.5 s" in log and "hangs_on_13" in log  # where it hangs
                with running(start):
                    score = await pool.call("guessing", "score", state(say("5")), 20.0)
                assert score["reward"] == 1

    asyncio.run(main())
