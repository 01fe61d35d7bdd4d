"""The demo on two real vLLM servers: one is killed, one reads and samples slowly for half a minute, one is frozen for a
minute, and the disk is full for half a minute (where this user may mount one).

    make vllm
    python -m evidence.vllm_fleet

Does it learn all the same, is nothing lost or trained twice, and does the log say what happened? The result goes to
evidence/results/vllm_fleet.json; one that is there already, of the same recipe, is not made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from configs.debug_vllm_cpu import get_config
from evidence.books import complaints, read_books
from evidence.strikes import ROOT, said, start, steps_done, wait_for
from intellect_jax.files import write_json
from intellect_jax.monitor.metrics import read_metrics

RESULTS = ROOT / "evidence" / "results" / "vllm_fleet.json"
CONFIG = "configs/debug_vllm_cpu.py"
KILLED_AT, SLOW_AT, FROZEN_AT, FULL_AT = 30, 60, 90, 125  # RL steps
SLOW, FREEZE, FULL = 30.0, 60.0, 30.0  # seconds
PERIOD, AWAKE = 1.0, 0.2  # seconds: of a slow server, and how much of them it runs
DISK = 2048  # MiB
TIMEOUT = 1800.0


def family(run_dir: Path, index: int) -> list[int]:
    """vLLM's server number ``index`` of the run and every process under it; empty when there is none."""
    parents: dict[int, int] = {}
    roots: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(folder.name)] = int(fields[1])
        if f"--model={run_dir}/vllm/model-{index}".encode() in words:
            roots.append(int(folder.name))
    found = roots[:1]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        os.kill(pid, number)


@contextmanager
def disk(folder: Path) -> Iterator[bool]:
    """A disk of its own at ``folder``; False where this user may not mount one."""
    words = ["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "none", str(folder)]
    mounted = subprocess.run(words, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def kill(run_dir: Path) -> dict[str, Any]:
    """Server 1 dies; returns how long it took until it samples the current version again."""
    at, killed = steps_done(run_dir), family(run_dir, 1)
    send(killed[:1], signal.SIGKILL)
    begun = time.monotonic()
    wait_for(lambda: set(family(run_dir, 1)) - set(killed), "second server 1", 120)
    wait_for(partial(_samples, run_dir, 1, time.time()), "version on server 1", 300)
    left = [pid for pid in killed if Path(f"/proc/{pid}").exists()]
    return {"at_step": at, "back_after_s": round(time.monotonic() - begun, 1), "orphans": left}


def _samples(run_dir: Path, index: int, since: float) -> bool:
    """Whether the server has had a version and made tokens since then."""
    rows = [row for row in read_metrics(run_dir) if row["role"] == f"sampler-{index}" and row["time"] > since]
    return any(row.get("version/number", -1) > KILLED_AT and row.get("tokens/generated", 0) > 0 for row in rows)


def freeze(run_dir: Path) -> dict[str, Any]:
    """Server 0 stands still for a minute; returns what was trained meanwhile."""
    at, pids = steps_done(run_dir), family(run_dir, 0)
    send(pids, signal.SIGSTOP)
    time.sleep(FREEZE)
    meanwhile = steps_done(run_dir) - at
    send([pid for pid in pids if Path(f"/proc/{pid}").exists()], signal.SIGCONT)
    return {"at_step": at, "seconds": FREEZE, "steps_meanwhile": meanwhile}


def slow(run_dir: Path) -> dict[str, Any]:
    """Server 1 gets a fifth of its time; returns what was trained meanwhile."""
    at, pids, begun = steps_done(run_dir), family(run_dir, 1), time.monotonic()
    while time.monotonic() - begun < SLOW:
        send(pids, signal.SIGSTOP)
        time.sleep(PERIOD - AWAKE)
        send(pids, signal.SIGCONT)
        time.sleep(AWAKE)
    return {"at_step": at, "seconds": SLOW, "steps_meanwhile": steps_done(run_dir) - at}


def fill(run_dir: Path) -> dict[str, Any]:
    """Nothing is left on the disk; returns what was trained meanwhile."""
    at, filling = steps_done(run_dir), run_dir.parent / "filling"
    with filling.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(1 << 16)):
            pass
    time.sleep(FULL)
    meanwhile = steps_done(run_dir) - at
    filling.unlink()
    return {"at_step": at, "seconds": FULL, "steps_meanwhile": meanwhile}


EVENTS = {"killed": (KILLED_AT, kill), "slow": (SLOW_AT, slow), "frozen": (FROZEN_AT, freeze), "full": (FULL_AT, fill)}


def _reached(run_dir: Path, step: int, process: subprocess.Popen[bytes]) -> bool:
    return steps_done(run_dir) >= step or process.poll() is not None


def run(run_dir: Path, names: list[str]) -> dict[str, Any]:
    """One run with the events of these names, and what came of it."""
    begun = time.monotonic()
    process = start(run_dir, "--fresh", config=CONFIG)
    events = {}
    for name in names:
        step, event = EVENTS[name]
        wait_for(partial(_reached, run_dir, step, process), f"step {step}", TIMEOUT)
        events[name] = event(run_dir)
    code = process.wait(TIMEOUT)
    out = said(run_dir)
    if code:
        raise RuntimeError(f"exit code {code}\n{out[-3000:]}")
    summary = json.loads((run_dir / "summary.json").read_text())
    books = read_books(run_dir)
    shown = {k: v for k, v in summary.items() if k.startswith("eval_") or k in ("steps", "process_deaths", "sampler")}
    return {
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "seconds": round(time.monotonic() - begun),
        **events,
        **shown,
        "said": [line for line in out.splitlines() if re.search(r"sampler-\d|disk", line)][-16:],
        "trainer_warnings": _warnings(run_dir, "trainer"),
        "orchestrator_warnings": _warnings(run_dir, "orchestrator"),
        "complaints": complaints(books, get_config().trainer.max_steps),
        **{k: v for k, v in books.items() if k != "steps"},
    }


def _warnings(run_dir: Path, role: str) -> list[str]:
    log = (run_dir / "logs" / f"{role}.log").read_text()
    return [line for line in log.splitlines() if " WARNING " in line][-24:]


def main() -> None:
    recipe = hashlib.sha256(get_config().to_json().encode()).hexdigest()[:12]
    if RESULTS.exists() and json.loads(RESULTS.read_text())["recipe"] == recipe:
        print("already there")
        return
    with tempfile.TemporaryDirectory() as folder, disk(Path(folder)) as mounted:
        names = [name for name in EVENTS if mounted or name != "full"]
        result = {"recipe": recipe, **run(Path(folder) / "run", names)}
    write_json(RESULTS, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
