"""Write a few common words in reverse order.

The prompt is a short instruction, one worked example, and different words from a list of 64. The reward is
2·LCS / (|answer| + |target|), all in words, with LCS the length of the longest common subsequence; ``exact_match`` is a
metric. Spacing does not count, spelling, case and punctuation do.

Train and held-out prompts are disjoint by construction: the words' places in the list sum to an even number in the one
and to an odd number in the other.
"""

from __future__ import annotations

import random

from intellect_jax.environments.base import Environment, Message, Score, State
from intellect_jax.environments.rubric import Rubric

TEXT = """
dog moon tree car blue fish bird milk book door rain fire gold king hand star boat ring wind road hill lake bear wolf
rose corn leaf apple bread chair cloud dance earth field glass green heart horse house light metal money month mouth
music night ocean paper piano plant river salt sand ship snow song stone street summer table train water winter wood
"""
WORDS = tuple(TEXT.split())
EXAMPLE = "red cat sun"  # none of them in the list: copying the example must not pay
PARITY = {"train": 0, "eval": 1}


def reversed_words(text: str) -> str:
    return " ".join(reversed(text.split()))


def similarity(answer: list[str], target: list[str]) -> float:
    """2·LCS / (|answer| + |target|) over words: 1 exactly when they are equal. ``target`` must not be empty."""
    best = [0] * (len(target) + 1)  # of the answer so far and the first j words of the target
    for word in answer:
        before = best
        best = [0]
        for j, wanted in enumerate(target):
            best.append(before[j] + 1 if word == wanted else max(before[j + 1], best[j]))
    return 2 * best[-1] / (len(answer) + len(target))


class ReverseWords(Environment):
    name = "reverse_words"

    def __init__(self, min_words: int, max_words: int, sizes: dict[str, int], seed: int):
        self._min, self._max, self._sizes, self._seed = min_words, max_words, sizes, seed
        self._rubric = Rubric([self.similarity, self.exact_match], weights=[1, 0])

    def size(self, split: str) -> int:
        return self._sizes[split]

    def text(self, split: str, index: int) -> str:
        """The words of one example, the same in every process."""
        if not 0 <= index < self._sizes[split]:
            raise IndexError(f"{split} has {self._sizes[split]} examples, not an example {index}")
        rng = random.Random(f"{self._seed}/{split}/{index}")
        count = rng.randint(self._min, self._max)
        places = rng.sample(range(len(WORDS)), count)
        while sum(places) % 2 != PARITY[split]:
            places = rng.sample(range(len(WORDS)), count)
        return " ".join(WORDS[place] for place in places)

    def prompt(self, split: str, index: int) -> list[Message]:
        return [
            {"role": "system", "content": "Reverse the words."},
            {"role": "user", "content": EXAMPLE},
            {"role": "assistant", "content": reversed_words(EXAMPLE)},
            {"role": "user", "content": self.text(split, index)},
        ]

    async def score(self, state: State) -> Score:
        return await self._rubric.score(state)

    async def similarity(self, state: State, answer: str) -> float:
        return similarity(answer.split(), self._target(state))

    async def exact_match(self, state: State, answer: str) -> float:
        return float(answer.split() == self._target(state))

    def _target(self, state: State) -> list[str]:
        return reversed_words(self.text(state["split"], state["index"])).split()


def load_environment(
    min_words: int = 3, max_words: int = 4, num_train: int = 100_000, num_eval: int = 256, seed: int = 0
) -> ReverseWords:
    """The environment; ``max_words`` is included. Raises ValueError on an impossible range or size."""
    if not 1 <= min_words <= max_words <= len(WORDS) // 2:
        raise ValueError(f"{min_words} to {max_words} words: must be 1 ≤ min ≤ max ≤ {len(WORDS) // 2}")
    if num_train < 1 or num_eval < 1:
        raise ValueError(f"num_train={num_train}, num_eval={num_eval}: both must be at least 1")
    return ReverseWords(min_words, max_words, {"train": num_train, "eval": num_eval}, seed)
