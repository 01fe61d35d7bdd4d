"""What a tokenizer's chat template writes, and with which tokens it lets the assistant end its turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from intellect_jax.data.messages import ChatError, Message, Tool

QUESTION, ANSWER, NEXT = "question-to-learn-of", "answer-to-learn-of", "message-to-learn-of"


def render_text(tokenizer: Any, messages: Sequence[Message], tools: Sequence[Tool], *, generate: bool) -> str:
    """The conversation as ``apply_chat_template`` writes it, up to the assistant's next word if ``generate``.

    Raises ChatError when the template refuses it, or leaves out a tool or a tool call.
    """
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tools=list(tools) or None, tokenize=False, add_generation_prompt=generate
        )
    except Exception as error:  # a template's own words, or whatever Jinja stumbles over
        raise ChatError(f"the chat template refuses this conversation: {error}") from error
    calls = [call for message in messages for call in message.get("tool_calls", ())]
    for name in (function["function"]["name"] for function in (*tools, *calls)):
        if name not in text:
            raise ChatError(f"the chat template leaves out the tool {name!r}: take a template that knows tools")
    return text


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of what a template wrote: it writes every special token itself.

    Text that looks like a special token becomes one, wherever it comes from, as in ``apply_chat_template``.
    """
    return tokenizer.encode(text, add_special_tokens=False)


def decode(tokenizer: Any, ids: list[int]) -> str:
    """The text of ids, special tokens and all."""
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@dataclass(frozen=True)
class Endings:
    """How an assistant's turn ends.

    ``closes``: the template itself writes an end token behind the turn. ``before``: the end token by the role of the
    next message ("user", "tool"); a template that closes no turn lets the assistant write the token that opens the next
    (GLM-4.5's ``<|user|>`` and ``<|observation|>``). ``ids``: all of them and the end-of-sequence token.
    """

    closes: bool
    before: dict[str, int]
    ids: frozenset[int]


def endings(tokenizer: Any) -> Endings:
    """Learnt from what the template writes behind an answer; the same object again for the same template."""
    return _endings(tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=32)
def _endings(tokenizer: Any, template: str) -> Endings:
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}

    def end(*following: Message) -> int | None:
        """The first special token behind an answer; None when there is none, or the template refuses such messages."""
        messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}, *following]
        try:
            text = render_text(tokenizer, messages, (), generate=False)
        except ChatError:
            return None
        behind = encode(tokenizer, text.partition(ANSWER)[2])
        return next((index for index in behind if index in special), None)

    found = {role: end({"role": role, "content": NEXT}) for role in ("user", "tool")}
    before = {role: index for role, index in found.items() if index is not None}
    closing = end()
    ids = {*before.values(), closing, tokenizer.eos_token_id} - {None}
    return Endings(closing is not None, before, frozenset(ids))
