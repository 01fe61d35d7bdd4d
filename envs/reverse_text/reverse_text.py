"""Reverse a text of letters.

The prompt is a random text over a–z, the right answer the same letters backwards. The reward is
2·LCS / (|answer| + |target|), with LCS the length of the longest common subsequence; ``exact_match`` is a metric.

Train and held-out prompts are disjoint by construction: the letters' places in the alphabet (a = 0) sum to an even
number in the one and to an odd number in the other.
"""

from __future__ import annotations

import random
import string

from intellect_jax.environments.base import Environment, Message, Score, State
from intellect_jax.environments.rubric import Rubric

LETTERS = string.ascii_lowercase
PARITY = {"train": 0, "eval": 1}


def longest_common_subsequence(a: str, b: str) -> int:
    """Length of the longest common subsequence, one machine operation per 64 letters of ``b`` (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for i, letter in enumerate(b):
        places[letter] = places.get(letter, 0) | 1 << i
    everything = (1 << len(b)) - 1
    row = everything  # a zero bit marks a place of b where the subsequence grows
    for letter in a:
        matches = row & places.get(letter, 0)
        row = (row + matches | row - matches) & everything
    return len(b) - row.bit_count()


def similarity(answer: str, target: str) -> float:
    """2·LCS / (|answer| + |target|): 1 exactly when they are equal. ``target`` must not be empty."""
    return 2 * longest_common_subsequence(answer, target) / (len(answer) + len(target))


def random_text(rng: random.Random, min_length: int, max_length: int, split: str) -> str:
    """A text of ``min_length`` to ``max_length`` letters that belongs to ``split``."""
    places = [rng.randrange(len(LETTERS)) for _ in range(rng.randint(min_length, max_length))]
    if sum(places) % 2 != PARITY[split]:
        places[-1] ^= 1  # stays in the alphabet, which has an even number of letters
    return "".join(LETTERS[place] for place in places)


class ReverseText(Environment):
    name = "reverse_text"

    def __init__(self, lengths: dict[str, tuple[int, int]], sizes: dict[str, int], seed: int):
        self._lengths, self._sizes, self._seed = lengths, sizes, seed
        self._rubric = Rubric([self.similarity, self.exact_match], weights=[1, 0])

    def size(self, split: str) -> int:
        return self._sizes[split]

    def text(self, split: str, index: int) -> str:
        """The text of one example, the same in every process."""
        if not 0 <= index < self._sizes[split]:
            raise IndexError(f"{split} has {self._sizes[split]} examples, not an example {index}")
        return random_text(random.Random(f"{self._seed}/{split}/{index}"), *self._lengths[split], split)

    def prompt(self, split: str, index: int) -> list[Message]:
        return [{"role": "user", "content": self.text(split, index)}]

    async def score(self, state: State) -> Score:
        return await self._rubric.score(state)

    async def similarity(self, state: State, answer: str) -> float:
        return similarity(answer, self._target(state))

    async def exact_match(self, state: State, answer: str) -> float:
        return float(answer == self._target(state))

    def _target(self, state: State) -> str:
        return self.text(state["split"], state["index"])[::-1]


def load_environment(
    min_length: int = 4,
    max_length: int = 16,
    eval_min_length: int = 12,
    eval_max_length: int = 16,
    num_train: int = 100_000,
    num_eval: int = 256,
    seed: int = 0,
) -> ReverseText:
    """The environment; lengths in letters, both ends included. Raises ValueError on an impossible range or size."""
    lengths = {"train": (min_length, max_length), "eval": (eval_min_length, eval_max_length)}
    for split, (low, high) in lengths.items():
        if not 1 <= low <= high:
            raise ValueError(f"{split} lengths {low} to {high}: must be 1 ≤ min ≤ max")
    if num_train < 1 or num_eval < 1:
        raise ValueError(f"num_train={num_train}, num_eval={num_eval}: both must be at least 1")
    return ReverseText(lengths, {"train": num_train, "eval": num_eval}, seed)
