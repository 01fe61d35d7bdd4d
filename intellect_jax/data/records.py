"""Supervised records by index, from JSONL, Parquet or tensorflow-datasets, and what a record may look like."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from intellect_jax.data.chat import render_training
from intellect_jax.data.messages import ChatError, Message, Tool, checked_messages, checked_tools
from intellect_jax.errors import UserError

TFDS = "tfds:"


class Source(Protocol):
    """Random access: ``source[i]`` is (where the record lies, for error messages; the record)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[str, Any]: ...


def open_source(data: str) -> Source:
    """The records of ``config.sft.data``: a path ending in .jsonl or .parquet, or ``tfds:<name>/<split>``.

    Raises UserError, one line, when there is no such source, it has no records, or it is of no known kind.
    """
    kind = TFDS if data.startswith(TFDS) else Path(data).suffix
    if kind not in SOURCES:
        raise UserError(f"{data!r} is no source of records: must end in .jsonl or .parquet, or be {TFDS}<name>/<split>")
    if kind != TFDS and not Path(data).is_file():
        raise UserError(f"there is no file {data}")
    source = SOURCES[kind](data)
    if len(source) == 0:
        raise UserError(f"{data} holds no records")
    return source


@dataclass(frozen=True)
class Conversation:
    """What a record says."""

    messages: list[Message]
    tools: list[Tool]
    context: int  # how many leading messages are its prompt, not trained on


def to_conversation(where: str, record: Any) -> Conversation:
    """The conversation of a record.

    A record is {"prompt", "completion"}, each a text or messages, or {"messages"} (all of the assistant's are trained
    on), and perhaps "tools". Raises UserError naming ``where`` and what is missing or wrong.
    """
    if not isinstance(record, dict):
        raise UserError(f"{where}: a record must be an object, not {type(record).__name__}")
    try:
        tools = checked_tools("tools", record.get("tools"))
        if record.get("messages") is not None:
            return Conversation(_messages(where, record, "messages", "user"), tools, context=0)
        prompt = _messages(where, record, "prompt", "user")
        return Conversation(prompt + _messages(where, record, "completion", "assistant"), tools, context=len(prompt))
    except ChatError as error:
        raise UserError(f"{where}: {error}") from None


def render_record(tokenizer: Any, where: str, record: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """The samples of a record: see :func:`render_training`. Raises UserError naming ``where``."""
    conversation = to_conversation(where, record)
    try:
        return render_training(tokenizer, conversation.messages, conversation.tools, conversation.context)
    except ChatError as error:
        raise UserError(f"{where}: {error}") from error


def _messages(where: str, record: dict[str, Any], key: str, role: str) -> list[Message]:
    value = record.get(key)
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list) or not value:
        has = ", ".join(map(str, record)) or "nothing"
        raise UserError(f"{where}: no {key!r}; a record has prompt and completion, or messages; this one has {has}")
    return checked_messages(key, value)


class JsonLines:
    """One JSON object a line; empty lines are skipped. Keeps only where lines start, so files may exceed memory."""

    def __init__(self, path: str):
        self._path = path
        spans, start = [], 0
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    spans.append((number, start, len(line)))
                start += len(line)
        self._spans = np.array(spans, np.int64).reshape(-1, 3)
        self._file = open(path, "rb")  # noqa: SIM115  open as long as the source lives

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> tuple[str, Any]:
        number, start, length = map(int, self._spans[index])
        where = f"{self._path}:{number}"
        line = os.pread(self._file.fileno(), length, start)  # readers' threads share the file: no seek
        try:
            return where, json.loads(line)
        except ValueError as error:
            raise UserError(f"{where}: not JSON: {error}") from None


class Parquet:
    """The rows of a Parquet file, counted from 1 in error messages."""

    def __init__(self, path: str):
        import pyarrow.parquet

        self._path, self._table = path, pyarrow.parquet.read_table(path)

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, index: int) -> tuple[str, Any]:
        return f"{self._path}:{index + 1}", self._table.slice(index, 1).to_pylist()[0]


class TensorflowDatasets:
    """A split of a tensorflow-datasets data set through its ``data_source``, which needs no TensorFlow."""

    def __init__(self, data: str):
        try:
            import tensorflow_datasets
        except ModuleNotFoundError as error:
            raise UserError(f"{data} needs tensorflow-datasets: pip install 'intellect-jax[tfds]'") from error
        name, slash, split = data.removeprefix(TFDS).rpartition("/")
        if not slash:
            raise UserError(f"{data!r} names no split: must be {TFDS}<name>/<split>")
        self._data, self._source = data, tensorflow_datasets.data_source(name, split=split)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[str, Any]:
        return f"{self._data}:{index + 1}", _plain(self._source[index])


def _plain(value: Any) -> Any:
    """What tensorflow-datasets decodes, as JSON values: bytes as text, a sequence of features as a list of objects."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        columns = {key: _plain(v) for key, v in value.items()}
        if set(columns) >= {"role", "content"} and all(isinstance(v, list) for v in columns.values()):
            return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return columns
    if isinstance(value, (list, np.ndarray)):
        return [_plain(v) for v in value]
    return value


SOURCES: dict[str, Callable[[str], Source]] = {
    ".jsonl": JsonLines,
    ".parquet": Parquet,
    TFDS: TensorflowDatasets,
}
