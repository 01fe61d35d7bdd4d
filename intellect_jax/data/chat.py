"""Conversations as token ids, exactly as the tokenizer's chat template writes them.

Tokens are never re-derived from text once they exist: training masks are found by exact prefix, and a conversation goes
on by appending to the ids that the sampler saw and wrote.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Message = dict[str, Any]


def render_prompt(tokenizer: Any, messages: list[Message]) -> list[int]:
    """Ids of a conversation up to where the assistant is to write."""
    return _encode(tokenizer, _text(tokenizer, messages, generate=True))


def render_training(tokenizer: Any, messages: list[Message], context: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Ids (int32 [T]) of a whole conversation, and a mask (bool [T]), true on what the assistant writes.

    That is each assistant turn after the first ``context`` messages, from behind its generation prompt up to its
    end-of-sequence token, or to the turn's end where the template writes none. Raises ValueError naming the turn whose
    tokens are not a prefix of the whole's (the template rewrites history, or merges tokens across the border), and
    when no turn is the assistant's.
    """
    full = _encode(tokenizer, _text(tokenizer, messages, generate=False))
    mask = np.zeros(len(full), np.bool_)
    turns = [i for i in range(context, len(messages)) if messages[i]["role"] == "assistant"]
    if not turns:
        raise ValueError("no message of the assistant to train on")
    for i in turns:
        start = _prefix_length(full, render_prompt(tokenizer, messages[:i]), i, "the prompt of")
        rendered = _encode(tokenizer, _text(tokenizer, messages[: i + 1], generate=False))
        stop = _prefix_length(full, rendered, i, "the conversation up to")
        mask[start : _end_of_turn(full, start, stop, tokenizer.eos_token_id)] = True
    return np.array(full, np.int32), mask


def extend(tokenizer: Any, history_ids: list[int], messages: list[Message]) -> list[int] | None:
    """Ids that bring ``history_ids`` up to ``messages`` and the next generation prompt.

    ``history_ids`` is what the sampler saw and wrote: a prompt and the sampled answer, as they are. ``messages`` is the
    whole conversation: what ``history_ids`` holds, then the new messages. None when the template writes that history
    otherwise than it was: the branch then has to fork from a fresh :func:`render_prompt`.
    """
    text = _text(tokenizer, messages, generate=True)
    history = tokenizer.decode(history_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return _encode(tokenizer, text[len(history) :]) if text.startswith(history) else None


def _text(tokenizer: Any, messages: list[Message], *, generate: bool) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)


def _encode(tokenizer: Any, text: str) -> list[int]:
    # The template writes every special token itself.
    return tokenizer.encode(text, add_special_tokens=False)


def _prefix_length(full: list[int], prefix: list[int], turn: int, what: str) -> int:
    if full[: len(prefix)] != prefix:
        raise ValueError(f"{what} message {turn} is not a prefix of the conversation's tokens: cannot tell its mask")
    return len(prefix)


def _end_of_turn(full: list[int], start: int, stop: int, eos: int) -> int:
    """Where the assistant stops writing: templates may put more (a newline) behind its end token."""
    return next((t + 1 for t in reversed(range(start, stop)) if full[t] == eos), stop)
