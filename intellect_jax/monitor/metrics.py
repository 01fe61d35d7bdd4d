"""metrics.jsonl: one JSON line per row, appended by every role of a run at once, read while it grows.

A row is ``{"time": unix seconds, "role": "trainer", "step": 3 or null, "group/name": number, …}``. Rows go to sinks:
that file always, TensorBoard's files where the config asks for them.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Any, Protocol

log = logging.getLogger(__name__)

FILE = "metrics.jsonl"
_BEGINS = b'{"time": '  # every row
Row = dict[str, Any]


class Sink(Protocol):
    """Where rows go."""

    def write(self, row: Row) -> None: ...

    def close(self) -> None: ...


class Metrics:
    """One role's rows, to every sink."""

    def __init__(
        self, run_dir: Path, role: str, *, tensorboard: bool = False, speaks: bool = True, spare: bool = False
    ):
        """``tensorboard``: ``config.monitor.tensorboard``. Rows of one that does not speak go nowhere. ``spare``: rows
        that a full disk does not take are left out, for nobody's work hangs on them."""
        self._role, self._spare, self._told = role, spare, False
        self._sinks: list[Sink] = [JsonLines(run_dir)] if speaks else []
        if tensorboard and speaks:
            self._sinks.append(TensorBoard(run_dir / "tensorboard" / role))

    def log(self, step: int | None, values: Mapping[str, Any]) -> None:
        """Writes a row. Values are numbers, arrays of one element included.

        Raises OSError when the disk is full, unless its rows can be spared.
        """
        row = {"time": time.time(), "role": self._role, "step": step}
        row |= {name: _number(value) for name, value in values.items()}
        try:
            for sink in self._sinks:
                sink.write(row)
        except OSError as error:
            if not self._spare or error.errno != errno.ENOSPC:
                raise
            if not self._told:
                log.warning("metrics are left out while the disk is full: %s", error)
            self._told = True

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()


class JsonLines:
    """metrics.jsonl. Each row is one write to an O_APPEND descriptor, so rows of processes never mix."""

    def __init__(self, run_dir: Path):
        run_dir.mkdir(parents=True, exist_ok=True)
        path = run_dir / FILE
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        if _ends_torn(path):
            # So that the torn row spoils no other. Where another process was just writing, it makes an empty line.
            os.write(self._descriptor, b"\n")
        self._torn = b""

    def write(self, row: Row) -> None:
        line = self._torn + json.dumps(row).encode() + b"\n"
        if os.write(self._descriptor, line) != len(line):
            self._torn = b"\n"  # so that what was cut short spoils no other
            raise OSError(errno.ENOSPC, f"{FILE}: row cut short")
        self._torn = b""

    def close(self) -> None:
        os.close(self._descriptor)


class TensorBoard:
    """Event files in a folder of the role's own. Rows without a step stand at their unix second."""

    def __init__(self, folder: Path):
        from tensorboardX import SummaryWriter  # an extra: config.validate says so where it is missing

        self._writer = SummaryWriter(str(folder), flush_secs=10)

    def write(self, row: Row) -> None:
        at = int(row["time"]) if row["step"] is None else row["step"]
        for name, value in row.items():
            if "/" in name:  # not time, role and step
                self._writer.add_scalar(name, value, at, walltime=row["time"])

    def close(self) -> None:
        self._writer.close()


class Tail:
    """Reads the rows that were appended since the last look."""

    def __init__(self, run_dir: Path):
        self._path = run_dir / FILE
        self._offset = 0

    def new_rows(self) -> list[Row]:
        """Whole new rows, oldest first. A row still being written comes next time; a torn one never."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole = file.read().rpartition(b"\n")[0]
        if not whole:
            return []
        self._offset += len(whole) + 1
        return [row for line in whole.split(b"\n") if (row := _parse(line)) is not None]


def read_metrics(run_dir: Path) -> list[Row]:
    """All rows of a run, in the order written; [] when there are none yet. Torn rows are left out."""
    return Tail(run_dir).new_rows()


def _number(value: Any) -> int | float:
    return int(value) if isinstance(value, Integral) else float(value)


def _parse(line: bytes) -> Row | None:
    """The row at the line's end: it may follow what another process could not write whole on a full disk."""
    try:
        row = json.loads(line[max(line.rfind(_BEGINS), 0) :])
    except ValueError:
        return None
    return row if isinstance(row, dict) and {"time", "role", "step"} <= row.keys() else None


def _ends_torn(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
