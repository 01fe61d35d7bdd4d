import asyncio
import json
import random
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intellect_jax.environments.loader import load_environment

FOLDER = Path(__file__).parents[2] / "envs" / "reverse_text"


@pytest.fixture(scope="module")
def environment():
    return load_environment("reverse_text", min_length=2, max_length=6, num_train=500, num_eval=64, seed=3)


@pytest.fixture(scope="module")
def module(environment):
    return sys.modules[type(environment).__module__]


def score(environment, split, index, answer):
    messages = [*environment.prompt(split, index), {"role": "assistant", "content": answer}]
    state = {"split": split, "index": index, "messages": messages, "info": {}}
    return asyncio.run(environment.score(state))


def slow_lcs(a, b):
    @cache
    def best(i, j):
        if i == len(a) or j == len(b):
            return 0
        return 1 + best(i + 1, j + 1) if a[i] == b[j] else max(best(i + 1, j), best(i, j + 1))

    return best(0, 0)


@settings(max_examples=200, deadline=None)
@given(a=st.text(alphabet="abcd\né", max_size=40), b=st.text(alphabet="abcd", max_size=40))
def test_longest_common_subsequence_is_the_textbook_one(module, a, b):
    assert module.longest_common_subsequence(a, b) == slow_lcs(a, b)
    assert module.longest_common_subsequence(b, a) == slow_lcs(a, b)


def test_long_texts_are_fast(module):
    rng = random.Random(0)
    a, b = ("".join(rng.choices("abcd", k=20_000)) for _ in range(2))
    assert 0.6 < module.longest_common_subsequence(a, b) / 20_000 < 0.7  # Chvátal–Sankoff for 4 letters: 0.65


def test_rewards(environment, module):
    text = environment.prompt("eval", 0)[-1]["content"]
    right = score(environment, "eval", 0, text[::-1])
    assert right.reward == 1 and right.metrics == {"similarity": 1, "exact_match": 1}
    assert score(environment, "eval", 0, "").reward == 0
    n = len(text)
    short = score(environment, "eval", 0, text[::-1][:-1])
    assert short.reward == pytest.approx(2 * (n - 1) / (2 * n - 1)) and short.metrics["exact_match"] == 0
    assert score(environment, "eval", 0, text[::-1] + " ").metrics["exact_match"] == 0  # nothing is stripped


def test_prompts_are_letters_of_the_asked_lengths_and_repeatable(environment):
    again = load_environment("reverse_text", min_length=2, max_length=6, num_train=500, num_eval=64, seed=3)
    other = load_environment("reverse_text", min_length=2, max_length=6, num_train=500, num_eval=64, seed=4)
    for split, low, high in (("train", 2, 6), ("eval", 12, 16)):
        texts = [environment.prompt(split, i)[0]["content"] for i in range(environment.size(split))]
        assert {len(t) for t in texts} == set(range(low, high + 1))
        assert set("".join(texts)) == set("abcdefghijklmnopqrstuvwxyz")
        assert texts == [again.prompt(split, i)[0]["content"] for i in range(again.size(split))]
        assert texts != [other.prompt(split, i)[0]["content"] for i in range(other.size(split))]


def test_train_and_held_out_are_disjoint():
    """Over texts of one or two letters, where random splits would surely meet."""
    environment = load_environment(
        "reverse_text", min_length=1, max_length=2, eval_min_length=1, eval_max_length=2, num_train=4000, num_eval=4000
    )
    train, held_out = ({environment.prompt(split, i)[0]["content"] for i in range(4000)} for split in ("train", "eval"))
    assert len(train) > 300 and len(held_out) > 300
    assert not train & held_out


def test_refusals(environment):
    with pytest.raises(IndexError, match="eval has 64 examples"):
        environment.prompt("eval", 64)
    with pytest.raises(ValueError, match="train lengths 5 to 4"):
        load_environment("reverse_text", min_length=5, max_length=4)
    with pytest.raises(ValueError, match="num_eval=0"):
        load_environment("reverse_text", num_eval=0)


def test_make_sft_writes_disjoint_prompt_completion_lines(tmp_path):
    outs = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        out = tmp_path / "data" / f"{name}.jsonl"
        options = [f"--out={out}", "--count=3000", "--min_length=1", "--max_length=2", f"--seed={seed}"]
        subprocess.run([sys.executable, FOLDER / "make_sft.py", *options], check=True, timeout=60)
        outs.append(out.read_text())
    assert outs[0] == outs[1] != outs[2]
    records = [json.loads(line) for line in outs[0].splitlines()]
    assert len(records) == 3000
    assert all(r["completion"] == r["prompt"][::-1] for r in records)
    held_out = load_environment("reverse_text", eval_min_length=1, eval_max_length=2, num_eval=3000)
    prompts = {held_out.prompt("eval", i)[0]["content"] for i in range(3000)}
    assert not prompts & {r["prompt"] for r in records}


def test_make_sft_refuses_impossible_lengths(tmp_path):
    options = [f"--out={tmp_path / 'x.jsonl'}", "--min_length=3", "--max_length=2"]
    done = subprocess.run(
        [sys.executable, FOLDER / "make_sft.py", *options], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and "lengths 3 to 2" in done.stderr
