"""Messages and tools as chat templates take them: OpenAI's form, checked where they enter."""

from __future__ import annotations

import json
from typing import Any

Message = dict[str, Any]  # role, content; of the assistant also tool_calls and reasoning_content
Tool = dict[str, Any]  # {"type": "function", "function": {"name": …, "parameters": JSON schema, …}}


class ChatError(ValueError):
    """A conversation that is malformed, or that the chat template cannot write: one line."""


def checked_messages(where: str, value: Any) -> list[Message]:
    """Clean copies of a list of messages: no null entries, arguments of tool calls as objects.

    A message has ``role`` and ``content``, both text. One of the assistant may have ``reasoning_content`` (text) and
    ``tool_calls``, [{"function": {"name", "arguments"}}] with arguments as object or as its JSON text; with these its
    content may be missing. Other entries pass as they are. Raises ChatError naming ``where`` and what is wrong.
    """
    if not isinstance(value, list):
        raise ChatError(f"{where} must be a list of messages, not {type(value).__name__}")
    return [_message(f"{where}[{i}]", message) for i, message in enumerate(value)]


def checked_tools(where: str, value: Any) -> list[Tool]:
    """The tools of a conversation, [] for None; a list, or its JSON text, of {"type": "function", "function": {…}}.

    Raises ChatError naming ``where`` and what is wrong.
    """
    tools = _parsed(where, value) if isinstance(value, str) else value
    if tools is None:
        return []
    if not isinstance(tools, list):
        raise ChatError(f"{where} must be a list of tools, not {type(tools).__name__}")
    for i, tool in enumerate(tools):
        _function(f"{where}[{i}]", tool)
    return tools


def _message(where: str, value: Any) -> Message:
    if not isinstance(value, dict):
        raise ChatError(f"{where} must be an object with role and content")
    message = {key: v for key, v in value.items() if v is not None}
    role, calls = message.get("role"), message.pop("tool_calls", None)
    if calls:
        if role != "assistant":
            raise ChatError(f"{where}: tool_calls are the assistant's, not those of role {role!r}")
        if not isinstance(calls, list):
            raise ChatError(f"{where}.tool_calls must be a list")
        message["tool_calls"] = [_call(f"{where}.tool_calls[{i}]", call) for i, call in enumerate(calls)]
        message.setdefault("content", "")
    if not {"role", "content"} <= set(message):
        raise ChatError(f"{where} must be an object with role and content")
    for key in ("role", "content", "reasoning_content"):
        if not isinstance(message.get(key, ""), str):
            raise ChatError(f"{where}: {key} must be text, not {type(message[key]).__name__}")
    return message


def _call(where: str, value: Any) -> dict[str, Any]:
    function = _function(where, value)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _parsed(f"{where}.function.arguments", arguments)
    if not isinstance(arguments, dict):
        raise ChatError(f"{where}.function.arguments must be an object or its JSON text")
    return {**value, "function": {**function, "arguments": arguments}}


def _function(where: str, value: Any) -> dict[str, Any]:
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise ChatError(f'{where} must be {{"type": "function", "function": {{"name": text, …}}}}')
    return function


def _parsed(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ChatError(f"{where} is not JSON: {error}") from None
