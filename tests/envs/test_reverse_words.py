import asyncio
import sys

import pytest

from intellect_jax.environments.loader import load_environment


@pytest.fixture(scope="module")
def environment():
    return load_environment("reverse_words", min_words=2, max_words=5, num_train=400, num_eval=64, seed=3)


@pytest.fixture(scope="module")
def module(environment):
    return sys.modules[type(environment).__module__]


def texts(environment, split):
    return [environment.prompt(split, i)[-1]["content"] for i in range(environment.size(split))]


def score(environment, index, answer):
    messages = [*environment.prompt("eval", index), {"role": "assistant", "content": answer}]
    return asyncio.run(environment.score({"split": "eval", "index": index, "messages": messages, "info": {}}))


def test_rewards(environment):
    index, words = next((i, t.split()) for i, t in enumerate(texts(environment, "eval")) if len(t.split()) == 4)
    a, b, c, d = words
    right = score(environment, index, f"{d} {c} {b} {a}")
    assert right.reward == 1 and right.metrics == {"similarity": 1, "exact_match": 1}
    assert score(environment, index, f" {d}  {c} {b} {a}\n").metrics["exact_match"] == 1  # spacing does not count
    for answer, common, written in (
        ("", 0, 0),
        (f"{a} {b} {c} {d}", 1, 4),
        (f"{d} {c}", 2, 2),
        (f"Answer: {d} {c} {b} {a}", 4, 5),
        (f"{d} {c} {b} {a}.", 3, 4),
        (f"{d.upper()} {c} {b} {a}", 3, 4),
        (f"{c} {d} {b} {a}", 3, 4),
        (f"{d} {d} {d} {d} {c}", 2, 5),
    ):
        got = score(environment, index, answer)
        assert got.reward == pytest.approx(2 * common / (4 + written)), answer
        assert got.metrics["exact_match"] == 0


def test_prompts_are_different_words_and_repeatable(environment, module):
    again = load_environment("reverse_words", min_words=2, max_words=5, num_train=400, num_eval=64, seed=3)
    other = load_environment("reverse_words", min_words=2, max_words=5, num_train=400, num_eval=64, seed=4)
    for split in ("train", "eval"):
        asked = [text.split() for text in texts(environment, split)]
        assert {len(words) for words in asked} == {2, 3, 4, 5}
        assert all(len(set(words)) == len(words) for words in asked)
        assert texts(environment, split) == texts(again, split) != texts(other, split)
    assert {word for text in texts(environment, "train") for word in text.split()} == set(module.WORDS)


def test_the_worked_example_is_right_and_shares_no_word_with_any_prompt(environment, module):
    system, asked, answered, _ = environment.prompt("train", 0)
    assert system["role"] == "system"  # or else the chat template writes a longer one
    assert answered["content"].split() == asked["content"].split()[::-1]
    assert not set(asked["content"].split()) & set(module.WORDS)
    assert len(set(module.WORDS)) == len(module.WORDS) == 64


def test_train_and_held_out_are_disjoint():
    """Over texts of one or two words, where random splits would surely meet."""
    environment = load_environment("reverse_words", min_words=1, max_words=2, num_train=4000, num_eval=4000)
    train, held_out = set(texts(environment, "train")), set(texts(environment, "eval"))
    assert len(train) > 1000 and len(held_out) > 1000
    assert not train & held_out


def test_refusals(environment):
    with pytest.raises(IndexError, match="eval has 64 examples"):
        environment.prompt("eval", 64)
    with pytest.raises(ValueError, match="5 to 4 words"):
        load_environment("reverse_words", min_words=5, max_words=4)
    with pytest.raises(ValueError, match="num_eval=0"):
        load_environment("reverse_words", num_eval=0)
