"""The HTTP routes, over a real port."""

import asyncio
import base64
import copy
import json
from contextlib import asynccontextmanager

import aiohttp
import numpy as np
import pytest

from intellect_jax.bridge.huggingface import to_hf
from intellect_jax.bridge.tokenizer import load_tokenizer, write_character_tokenizer
from intellect_jax.transport.weights import WeightStore
from intellect_jax.types import Version
from tests.policies import SMALL, random_params
from tests.samplers import MAX_LEN, expected_logprobs, install, running, sampler_config, serving

LOOK = {"type": "function", "function": {"name": "look"}}
GENERATE = "/inference/v1/generate"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_character_tokenizer(folder)
    return load_tokenizer(folder)


@asynccontextmanager
async def client(state):
    """A session whose paths are relative to a server in front of ``state``."""
    async with serving(state, sampler_config().sampler.urls[0]) as url, aiohttp.ClientSession(url) as session:
        yield session


async def post(session, path, body=None, **kwargs):
    async with session.post(path, json=body or {}, **kwargs) as response:
        return response.status, await response.json()


async def get(session, path):
    async with session.get(path) as response:
        return response.status, await response.text()


def body(token_ids, stream=False, **params):
    return {"model": "any", "token_ids": token_ids, "sampling_params": params, "stream": stream}


def test_generate_answers_in_vllms_fields(state):
    async def scenario():
        async with client(state) as session:
            return await post(session, GENERATE, body([1, 2, 3], max_tokens=9, seed=4, return_routed_experts=True))

    status, answer = asyncio.run(scenario())
    (choice,) = answer["choices"]
    assert status == 200 and len(choice["token_ids"]) == 9 and choice["finish_reason"] == "length"
    assert [c["token_id"] for c in choice["logprobs"]["content"]] == choice["token_ids"]
    logprobs = [c["logprob"] for c in choice["logprobs"]["content"]]
    expected = expected_logprobs(random_params(SMALL, 0), [1, 2, 3], choice["token_ids"])
    np.testing.assert_allclose(logprobs, expected, atol=1e-4)
    assert choice["weight_versions"] == [{"version": "0.0", "start": 0, "end": 9}]
    routes = choice["routed_experts"]
    assert routes["shape"] == [11, 2, 3] and len(base64.b64decode(routes["data"])) == 2 * 11 * 2 * 3


def test_a_stream_says_the_same_piece_by_piece(state):
    async def scenario():
        async with client(state) as session:
            _, whole = await post(session, GENERATE, body([5], max_tokens=20, seed=9))
            async with session.post(GENERATE, json=body([5], True, max_tokens=20, seed=9)) as response:
                assert response.content_type == "text/event-stream"
                return whole["choices"][0], (await response.text()).strip().split("\n\n")

    whole, events = asyncio.run(scenario())
    assert events[-1] == "data: [DONE]"
    pieces = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events[:-1]]
    assert len(pieces) == 20
    assert [t for p in pieces for t in p["token_ids"]] == whole["token_ids"]
    assert [c for p in pieces for c in p["logprobs"]["content"]] == whole["logprobs"]["content"]
    assert [p["finish_reason"] for p in pieces] == [None] * 19 + ["length"]
    assert pieces[7]["weight_versions"] == [{"version": "0.0", "start": 7, "end": 8}]


WRONG = {
    "no tokens": (body([]), "at least one token"),
    "text": (body("abc"), "token_ids must be a list of integers"),
    "beyond the vocabulary": (body([96]), "from 0 to 95"),
    "negative": (body([-1]), "from 0 to 95"),
    "boolean": (body([True]), "list of integers"),
    "too long": (body([1] * 200, max_tokens=57), f"at most {MAX_LEN}"),
    "no room": (body([1] * MAX_LEN), f"at most {MAX_LEN}"),
    "no budget": (body([1], max_tokens=0), "at least 1"),
    "fractional budget": (body([1], max_tokens=1.5), "must be an integer"),
    "cold": (body([1], temperature=-1), "temperature=-1"),
    "not a number": (body([1], temperature="hot"), "must be a number"),
    "top_p": (body([1], top_p=0), "top_p=0"),
    "seed": (body([1], seed=-1), "seed=-1"),
    "stop": (body([1], stop_token_ids=["a"]), "stop_token_ids must be"),
    "unsupported": (body([1], top_k=5), "top_k=5 is not supported"),
    "unknown": (body([1], temprature=1), "temprature=1 is not supported"),
    "two answers": (body([1], n=2), "n=2 is not supported"),
    "params": ({"token_ids": [1], "sampling_params": []}, "sampling_params must be an object"),
    "streamed routes": (body([1], True, return_routed_experts=True), "cannot be streamed"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_bad_requests_get_one_clear_line(state, wrong):
    async def scenario():
        async with client(state) as session:
            return await post(session, GENERATE, WRONG[wrong][0])

    status, answer = asyncio.run(scenario())
    assert status == 400 and WRONG[wrong][1] in answer["error"]["message"]
    assert "\n" not in answer["error"]["message"]


def test_a_body_that_is_not_a_json_object_is_refused(state):
    async def scenario():
        async with client(state) as session:
            answers = []
            for raw in (b"{", b"[1]"):
                async with session.post(GENERATE, data=raw) as response:
                    answers.append((response.status, (await response.json())["error"]["message"]))
            return answers

    (first, second) = asyncio.run(scenario())
    assert first[0] == second[0] == 400 and "not JSON" in first[1] and "object" in second[1]


def test_without_weights_the_server_is_healthy_and_refuses_to_generate():
    async def scenario(state):
        async with client(state) as session:
            return (
                await get(session, "/health"),
                await post(session, GENERATE, body([1])),
                await get(session, "/weight_info"),
            )

    with running(sampler_config()) as state:
        health, (status, answer), info = asyncio.run(scenario(state))
    assert health[0] == 200
    assert status == 503 and answer["error"] == {"message": "no weights yet", "code": "no_weights"}
    assert json.loads(info[1]) == {"weight_version": None, "updates": 0}


def test_a_caller_who_hangs_up_frees_the_slot(state):
    async def scenario():
        async with client(state) as session:
            for stream in (False, True):
                with pytest.raises(TimeoutError):
                    endless = body([1], stream, max_tokens=MAX_LEN - 1)
                    await asyncio.wait_for(_read_slowly(session, endless), 0.02)
            for _ in range(200):
                if state.engine.stats().running == 0:
                    return True
                await asyncio.sleep(0.005)
            return False

    generated = state.engine.stats().generated
    assert asyncio.run(scenario())
    assert state.engine.stats().generated - generated < 2 * (MAX_LEN - 1)


async def _read_slowly(session, content):
    async with session.post(GENERATE, json=content) as response:
        await response.content.readany()
        await asyncio.sleep(10)


def test_a_generation_past_the_time_limit_is_answered_504():
    async def scenario(state):
        async with client(state) as session:
            await post(session, "/pause?mode=keep")
            answer = await post(session, GENERATE, body([1]))
            await post(session, "/resume")
            return answer

    with running(sampler_config(request_timeout=0.3)) as state:
        install(state, 0)
        status, answer = asyncio.run(scenario(state))
    assert status == 504 and answer["error"]["code"] == "timeout"


def test_models_metrics_and_health(state):
    async def scenario():
        async with client(state) as session:
            return [(await get(session, path))[1] for path in ("/v1/models", "/metrics", "/health")]

    models, metrics, health = asyncio.run(scenario())
    assert json.loads(models)["data"][0]["max_model_len"] == MAX_LEN
    rows = dict(line.split() for line in metrics.splitlines() if not line.startswith("#"))
    assert int(rows["vllm:generation_tokens_total"]) == state.engine.stats().generated > 0
    assert rows["intellect_jax_weight_version"] == "0" and rows["vllm:num_requests_running"] == "0"
    assert json.loads(health) == {"status": "ok"}


def test_text_routes(tokenizer):
    """The random policy writes gibberish, yet the same gibberish on every route."""
    chat = {"messages": [{"role": "user", "content": "ab"}], "max_tokens": 12, "seed": 3}

    async def scenario(state):
        async with client(state) as session:
            prompt = tokenizer.apply_chat_template(chat["messages"], tokenize=False, add_generation_prompt=True)
            rest = {"max_tokens": 12, "seed": 3}
            _, tokens = await post(session, GENERATE, body(tokenizer.encode(prompt), **rest))
            _, completion = await post(session, "/v1/completions", {"model": "x", "prompt": prompt, **rest})
            _, answer = await post(session, "/v1/chat/completions", chat)
            async with session.post("/v1/chat/completions", json={**chat, "stream": True}) as response:
                streamed = await response.text()
            wrong = [
                await post(session, "/v1/chat/completions", wrong)
                for wrong in (
                    {},
                    {"messages": [{"role": "wizard", "content": "x"}]},
                    {"messages": [{"role": "user", "content": 1}]},
                    {**chat, "tools": [{"name": "look"}]},
                    {**chat, "tools": [LOOK]},
                )
            ]
            return tokens, completion, answer, streamed, wrong

    with running(sampler_config(), tokenizer) as state:
        install(state, 0)
        tokens, completion, answer, streamed, wrong = asyncio.run(scenario(state))
    text = tokenizer.decode(tokens["choices"][0]["token_ids"], skip_special_tokens=True)
    assert completion["choices"][0]["text"] == text
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": text}
    assert answer["usage"]["completion_tokens"] == len(tokens["choices"][0]["token_ids"])
    events = [json.loads(e.removeprefix("data: ")) for e in streamed.strip().split("\n\n")[:-1]]
    assert "".join(e["choices"][0]["delta"]["content"] for e in events) == text
    assert [status for status, _ in wrong] == [400] * 5
    for (_, said), expected in zip(
        wrong,
        (
            "messages must be a list",
            "the chat template refuses this conversation: unknown role",
            "messages[0]: content must be text, not int",
            'tools[0] must be {"type": "function"',
            "the chat template leaves out the tool 'look'",
        ),
        strict=True,
    ):
        assert expected in said["error"]["message"]


def test_chat_with_tools(tokenizer):
    """Calls, results and reasoning in OpenAI's form reach the template, null contents and JSON arguments included."""
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": "é"}'}}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "b"},
    ]
    chat = {"messages": messages, "tools": [LOOK], "max_tokens": 3, "seed": 1, "ignore_eos": True}
    template = "{{ tools[0].function.name }}{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
    template += "{{ c.function.arguments['at'] + c.function.name }}{% endfor %}{% endfor %}."
    knows = copy.deepcopy(tokenizer)
    knows.chat_template = template

    async def scenario(state):
        async with client(state) as session:
            return await post(session, "/v1/chat/completions", chat)

    with running(sampler_config(), knows) as state:
        install(state, 0)
        status, answer = asyncio.run(scenario(state))
    assert status == 200, answer
    assert answer["usage"] == {"prompt_tokens": len("lookaélookb."), "completion_tokens": 3, "total_tokens": 15}


def test_text_routes_need_a_tokenizer(state):
    async def scenario():
        async with client(state) as session:
            return await post(session, "/v1/completions", {"prompt": "a"})

    status, answer = asyncio.run(scenario())
    assert status == 400 and "no tokenizer" in answer["error"]["message"]


@pytest.fixture
def manifest(tmp_path):
    """Version 0.1 of ``random_params(SMALL, 1)``, published."""
    return WeightStore(tmp_path / "weights").publish(Version(0, 1), to_hf(random_params(SMALL, 1), SMALL))


def test_a_damaged_or_mismatched_update_leaves_the_policy_as_it_was(state, manifest):
    update = {"update_info": {"manifest": str(manifest)}}

    async def scenario():
        async with client(state) as session:
            early = await post(session, "/finish_weight_update", {"weight_version": "0.1"})
            missing = await post(session, "/update_weights", {"update_info": {"manifest": str(manifest) + "x"}})
            empty = await post(session, "/update_weights", {})
            assert (await post(session, "/update_weights", update))[0] == 200
            other = await post(session, "/finish_weight_update", {"weight_version": "0.2"})
            file = next(manifest.parent.glob("*.safetensors"))
            content = bytearray(file.read_bytes())
            content[-1] ^= 1
            file.write_bytes(content)
            await post(session, "/start_weight_update")
            damaged = await post(session, "/update_weights", update)
            late = await post(session, "/finish_weight_update", {"weight_version": "0.1"})
            return early, missing, empty, other, damaged, late, await get(session, "/weight_info")

    early, missing, empty, other, damaged, late, info = asyncio.run(scenario())
    assert [a[0] for a in (early, missing, empty, other, damaged, late)] == [409, 503, 400, 400, 503, 409]
    assert missing[1]["error"]["code"] == damaged[1]["error"]["code"] == "damaged_weights"
    assert "hash" in damaged[1]["error"]["message"] and "staged weights are 0.1" in other[1]["error"]["message"]
    assert json.loads(info[1])["weight_version"] == "0.0"


def test_weights_of_another_shape_are_refused(state, tmp_path):
    import dataclasses

    other = dataclasses.replace(SMALL, num_hidden_layers=2)
    path = WeightStore(tmp_path).publish(Version(0, 1), to_hf(random_params(other), other))

    async def scenario():
        async with client(state) as session:
            return await post(session, "/update_weights", {"update_info": {"manifest": str(path)}})

    status, answer = asyncio.run(scenario())
    assert status == 400 and "lacks" in answer["error"]["message"]


def test_administration_is_for_this_machine_or_the_token(state, monkeypatch):
    from intellect_jax.sampler import admin

    async def scenario():
        async with client(state) as session:
            bearer = {"Authorization": "Bearer secret"}
            return [
                (await post(session, "/resume"))[0],
                (await post(session, "/resume", headers=bearer))[0],
                (await post(session, "/resume", headers={"Authorization": "Bearer wrong"}))[0],
                (await post(session, GENERATE, body([1], max_tokens=1)))[0],
                (await post(session, "/resume", headers={"Origin": "https://a.page"}))[0],
            ]

    assert asyncio.run(scenario()) == [200, 200, 200, 200, 403]
    monkeypatch.setattr(admin, "_local", lambda request: False)  # as if from elsewhere
    assert asyncio.run(scenario()) == [403, 403, 403, 200, 403]
    monkeypatch.setattr(state, "admin_token", "secret")
    assert asyncio.run(scenario()) == [403, 200, 403, 200, 403]
