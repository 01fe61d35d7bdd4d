"""Two programs that take the same training steps, each in a process of its own, told by lines when to run.

While one runs the other waits for its next line, so that both have the same cores or the same GPU to themselves.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import IO, Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# What launch/heap.py does for ours, and huge pages.
KEEP_MEMORY = ":".join(
    f"glibc.malloc.{option}"
    for option in ("hugetlb=1", "mmap_max=0", "trim_threshold=8000000000", "top_pad=268435456", "arena_max=1")
)
CALM = 0.3  # seconds after which the other side's idle threads have stopped spinning


class Side:
    """One program. ``steps(n)`` takes n training steps and returns what it said of them."""

    def __init__(self, name: str, argv: list[str], environment: dict[str, str], timeout: float = 1800.0):
        self.name, self.argv, self.timeout = name, argv, timeout
        self.environment = {**os.environ, **environment}
        self.process: subprocess.Popen[str] | None = None
        self.lines: Queue[str] = Queue()
        self.about: dict[str, Any] = {}

    def start(self) -> None:
        if self.process is not None:
            return
        self.process = subprocess.Popen(
            self.argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.environment
        )
        self.lines = Queue()
        Thread(target=self._listen, args=(self.process.stdout, self.lines), daemon=True).start()
        self.about = self._answer()

    def steps(self, count: int) -> dict[str, Any]:
        assert self.process is not None and self.process.stdin is not None
        time.sleep(CALM)
        self.process.stdin.write(f"steps {count}\n")
        self.process.stdin.flush()
        return self._answer()

    def stop(self) -> None:
        """Ends the process and with it all the memory that it holds."""
        if self.process is None:
            return
        self.process.stdin.close()  # type: ignore[union-attr]
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(30)
        self.process = None

    @staticmethod
    def _listen(output: IO[str], lines: Queue[str]) -> None:
        for line in output:
            if line.startswith("{"):
                lines.put(line)
        lines.put("")

    def _answer(self) -> dict[str, Any]:
        """The next line that is JSON; raises RuntimeError when the process ends or says nothing for too long."""
        try:
            line = self.lines.get(timeout=self.timeout)
        except Empty:
            raise RuntimeError(f"{self.name}: no answer within {self.timeout:.0f} s") from None
        if not line:
            raise RuntimeError(f"{self.name} ended: see its messages above")
        return json.loads(line)


def ours(work: Path, platform: str) -> Side:
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {
        "JAX_PLATFORMS": platform,
        "PYTHONPATH": paths,
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95",  # of a GPU that it has to itself
    }
    return Side("ours", [sys.executable, str(HERE / "ours.py"), str(work)], environment)


def torch_peer(
    python: str, work: Path, experts: str, attention: str, compiled: bool, keeps_memory: bool = False
) -> Side:
    argv = [python, str(HERE / "torch_peer.py"), str(work), experts, attention, str(int(compiled))]
    name = f"torch {experts} {attention}" + " compiled" * compiled + " keeps memory" * keeps_memory
    environment = {"PYTHONPATH": "", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
    return Side(name, argv, environment | {"GLIBC_TUNABLES": KEEP_MEMORY} if keeps_memory else environment)
