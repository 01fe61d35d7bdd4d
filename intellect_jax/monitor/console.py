"""What a person sees while a run goes on: one live line on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from intellect_jax.monitor.metrics import Row, Tail
from intellect_jax.monitor.text import duration

LIVE_INTERVAL = 0.5  # seconds between two looks at the metrics on a terminal
PLAIN_INTERVAL = 5.0  # and elsewhere
WINDOW = 10  # steps over which speeds are averaged
SECONDS = 60  # rows of a sampler, one each second: slow models have rounds of many seconds
DIM, BOLD, RESET = "\x1b[2m", "\x1b[1m", "\x1b[0m"


@dataclass
class Progress:
    """Where a run stands, fed with its metric rows."""

    sft_steps: int  # in all
    max_steps: int  # RL steps in all
    step: Row | None = None  # newest row of the trainer, SFT or RL
    evaluation: Row | None = None
    times: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))  # unix seconds of recent steps' ends
    generated: dict[str, deque[tuple[float, float]]] = field(default_factory=dict)  # per sampler: (time, tokens so far)

    def add(self, row: Row) -> None:
        if row["role"] in ("trainer", "sft") and row["step"] is not None:
            if self.step is None or self.step["role"] != row["role"] or self.step["step"] >= row["step"]:
                self.times.clear()  # another phase, or a step taken again after a restart: another speed
            self.step = row
            self.times.append(row["time"])
        elif "tokens/generated" in row:
            series = self.generated.setdefault(row["role"], deque(maxlen=SECONDS))
            if series and series[-1][1] > row["tokens/generated"]:
                series.clear()  # that sampler was restarted
            series.append((row["time"], row["tokens/generated"]))
        elif "eval/reward" in row:
            self.evaluation = row
        elif "run/started" in row:
            self.times.clear()  # a resumed run: the pause is no step's time

    def tokens_per_second(self) -> float | None:
        """Of all samplers together, over their last rows; None before there are two."""
        spans = [(series[0], series[-1]) for series in self.generated.values() if len(series) > 1]
        if not spans:
            return None
        return sum((last[1] - first[1]) / max(last[0] - first[0], 1e-9) for first, last in spans)

    def seconds_left(self, now: float) -> float | None:
        """Of the phase in hand, from the speed of recent steps; None before there are two."""
        if self.step is None or len(self.times) < 2:
            return None
        per_step = (self.times[-1] - self.times[0]) / (len(self.times) - 1)
        return max(0.0, per_step * (self._in_all() - self.step["step"]) - (now - self.times[-1]))

    def _in_all(self) -> int:
        return self.sft_steps if self.step is not None and self.step["role"] == "sft" else self.max_steps

    def parts(self, now: float) -> list[tuple[str, str]]:
        """(label, value) of what there is to say, most important first."""
        if self.step is None:
            return [("", "starting")]
        supervised = self.step["role"] == "sft"
        parts = [("SFT step" if supervised else "step", f"{self.step['step']}/{self._in_all()}")]
        shown = [("loss", "loss/ce", ".3f")] if supervised else [("reward", "reward/mean", ".3f")]
        for label, name, form in [*shown, ("staleness", "staleness/mean", ".2f")]:
            if name in self.step:
                parts.append((label, format(self.step[name], form)))
        speed = None if supervised else self.tokens_per_second()
        if speed is not None:
            parts.append(("tokens/s", f"{speed:,.0f}"))
        if self.evaluation is not None:
            parts.append(("eval", f"{self.evaluation['eval/reward']:.3f}"))
        left = self.seconds_left(now)
        if left is not None:
            parts.append(("left", duration(left)))
        return parts


class Console:
    """Shows a run's progress on ``stream``; call :meth:`tick` often, it does little."""

    def __init__(self, progress: Progress, run_dir: Path, stream: TextIO):
        self._progress = progress
        self._tail = Tail(run_dir)
        self._stream = stream
        self._live = stream.isatty()
        self._colours = self._live and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self._interval = LIVE_INTERVAL if self._live else PLAIN_INTERVAL
        self._due = time.monotonic()
        self._shown = ""

    def tick(self) -> None:
        """Shows the newest state when it is time to; elsewhere than on a terminal, only when it has changed."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + self._interval
        self._read()
        if self._live:
            self._draw()
        else:
            self._print_if_new()

    def say(self, text: str) -> None:
        """A message above the live line."""
        self._clear()
        self._write(text + "\n")

    def finish(self) -> None:
        """Leaves the last state as a plain line."""
        self._read()
        self._clear()
        self._print_if_new()

    def _read(self) -> None:
        for row in self._tail.new_rows():
            self._progress.add(row)

    def _print_if_new(self) -> None:
        parts = self._progress.parts(time.time())
        news = str([part for part in parts if part[0] not in ("left", "tokens/s")])
        if news != self._shown:
            self._shown = news
            self._write(plain(parts) + "\n")

    def _draw(self) -> None:
        parts = self._progress.parts(time.time())
        width = shutil.get_terminal_size().columns - 1
        while len(parts) > 1 and len(plain(parts)) > width:
            parts.pop()
        self._write("\r\x1b[K" + (coloured(parts) if self._colours else plain(parts)))

    def _clear(self) -> None:
        if self._live:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        """What a full disk does not take now waits in the stream's buffer (8 KiB) for the next time."""
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


def plain(parts: list[tuple[str, str]]) -> str:
    return "  ".join(f"{label} {value}".strip() for label, value in parts)


def coloured(parts: list[tuple[str, str]]) -> str:
    return "  ".join((f"{DIM}{label}{RESET} " if label else "") + f"{BOLD}{value}{RESET}" for label, value in parts)
