"""Conversations as token ids that only ever grow, for the sampler, for RL and for SFT.

A branch is what the sampler saw and wrote, piece by piece: prompts that the chat template wrote, answers as they were
sampled. Each turn appends to it. Where the template writes the history otherwise than it was (drops old reasoning,
trims an answer), the conversation forks: a new branch begins with a fresh prompt. Pieces are tokenized one by one, as a
sampler gets them, so no token reaches across the border of an answer and the loss masks are exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from intellect_jax.data.messages import ChatError, Message, Tool
from intellect_jax.data.template import decode, encode, endings, render_text

Piece = tuple[list[int], bool]  # token ids, and whether the assistant wrote them


@dataclass(frozen=True)
class History:
    """A branch so far: its token ids, and their text as the template must write it for the branch to go on.

    The text is kept, since decoding may give another: tokenizers normalize, and bytes sampled may be no characters.
    """

    ids: list[int]
    text: str

    def plus(self, ids: list[int], text: str) -> History:
        return History(self.ids + ids, self.text + text)


def render_prompt(tokenizer: Any, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
    """Ids of a conversation up to where the assistant is to write. Raises ChatError."""
    return encode(tokenizer, render_text(tokenizer, messages, tools, generate=True))


def advance(
    tokenizer: Any, history: History | None, messages: Sequence[Message], tools: Sequence[Tool] = ()
) -> tuple[History, bool]:
    """(The branch up to where the assistant is to write; whether it forked, or began.)

    ``messages`` is the whole conversation: what ``history`` holds, then the new messages. The ids of ``history`` are a
    prefix of the result's unless the template writes that history otherwise. Raises ChatError.
    """
    text = render_text(tokenizer, messages, tools, generate=True)
    if history is None or not text.startswith(history.text):
        return History(encode(tokenizer, text), text), True
    added = text[len(history.text) :]
    return history.plus(encode(tokenizer, added), added), False


def split_answer(tokenizer: Any, ids: list[int]) -> tuple[str, str]:
    """What sampled ids say, and the text of the end token behind it, "" for an answer that was cut off."""
    ended = bool(ids) and ids[-1] in endings(tokenizer).ids
    said = ids[:-1] if ended else ids
    return decode(tokenizer, said), decode(tokenizer, ids[len(said) :])


def flatten(pieces: Iterable[Piece]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (int32 [T]) of a branch, and its loss mask (bool [T]), true on what the assistant wrote."""
    ids, written = zip(*pieces, strict=True)
    mask = np.repeat(np.array(written, np.bool_), [len(piece) for piece in ids])
    return np.concatenate([np.array(piece, np.int32) for piece in ids]), mask


def render_training(
    tokenizer: Any, messages: Sequence[Message], tools: Sequence[Tool] = (), context: int = 0
) -> list[tuple[np.ndarray, np.ndarray]]:
    """A whole conversation as the branches that RL would make of it: tokens (int32 [T]) and loss mask (bool [T]) each.

    Masks are true on every assistant turn after the first ``context`` messages, each in one branch: from behind its
    generation prompt up to its end token. What follows the last such turn is left out. A template that closes no turn
    gets the token that the assistant would write to end it. Raises ChatError when no message is the assistant's, or the
    template cannot show one as an answer to its own prompt.
    """
    turns = [i for i in range(context, len(messages)) if messages[i]["role"] == "assistant"]
    if not turns:
        raise ChatError("no message of the assistant to train on")
    branches: list[list[Piece]] = []
    history: History | None = None
    for turn in turns:
        prompt, forked = advance(tokenizer, history, messages[:turn], tools)
        if forked or history is None:
            branches.append([(prompt.ids, False)])
        else:
            branches[-1].append((prompt.ids[len(history.ids) :], False))
        ids, text = _answer(tokenizer, prompt, messages, turn, tools)
        branches[-1].append((ids, True))
        history = prompt.plus(ids, text)
    return [flatten(branch) for branch in branches]


def _answer(
    tokenizer: Any, prompt: History, messages: Sequence[Message], turn: int, tools: Sequence[Tool]
) -> tuple[list[int], str]:
    """Ids and text that the assistant would have written for message ``turn``, its end token included."""
    whole = render_text(tokenizer, messages[: turn + 1], tools, generate=False)
    if not whole.startswith(prompt.text):
        raise ChatError(f"the chat template writes message {turn} otherwise than it prompts for it: no mask is exact")
    text = whole[len(prompt.text) :]
    for key in ("reasoning_content", "content"):
        if messages[turn].get(key, "").rpartition("</think>")[2].strip() not in text:
            raise ChatError(f"the chat template leaves out the {key} of message {turn}")
    ids, ends = encode(tokenizer, text), endings(tokenizer)
    if ends.closes:
        stop = next((t + 1 for t in reversed(range(len(ids))) if ids[t] in ends.ids), len(ids))
        return ids[:stop], text.removesuffix(decode(tokenizer, ids[stop:]))
    end = [ends.before[role] for role in (_next_role(messages, turn), "user") if role in ends.before][:1]
    return ids + end, text + decode(tokenizer, end)


def _next_role(messages: Sequence[Message], turn: int) -> str:
    if turn + 1 < len(messages):
        return messages[turn + 1]["role"]
    return "tool" if messages[turn].get("tool_calls") else "user"
