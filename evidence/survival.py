"""The demo with one of its processes killed at five random moments: does it learn all the same, and lose nothing?

    python -m evidence.survival [--only=trainer]

Moments are drawn from the role's name, over supervised and RL steps alike. Results go to evidence/results/survival.json
as they come; a role that is there already, of the same recipe, is not run again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import random
import signal
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from configs.debug_cpu import get_config
from evidence.books import complaints, read_books
from evidence.strikes import ROLES, ROOT, pid_of, said, start, steps_done, strike, wait_for
from intellect_jax.files import write_json

RESULTS = ROOT / "evidence" / "results" / "survival.json"
KILLS = 5
SFT_SHARE = 0.45  # of the demo's time
TIMEOUT = 900.0


def moments(role: str) -> list[tuple[str, int]]:
    """Five times (phase, step), in order."""
    config, draw = get_config(), random.Random(f"survival/{role}")
    shares = sorted(draw.uniform(0.02, 0.98) for _ in range(KILLS))
    return [
        ("sft", int(s / SFT_SHARE * config.sft.steps))
        if s < SFT_SHARE
        else ("trainer", int((s - SFT_SHARE) / (1 - SFT_SHARE) * config.trainer.max_steps))
        for s in shares
    ]


def _reached(process: subprocess.Popen[bytes], run_dir: Path, phase: str, step: int) -> bool:
    """Raises RuntimeError where the run is over."""
    if steps_done(run_dir, phase) >= step:
        return True
    if process.poll() is not None:
        raise RuntimeError(f"over before {phase} step {step}, exit code {process.returncode}\n{said(run_dir)[-3000:]}")
    return False


def run(role: str, run_dir: Path) -> dict[str, Any]:
    """One demo with kills; what came of it."""
    process, begun = start(run_dir), time.monotonic()
    for phase, step in moments(role):
        wait_for(partial(_reached, process, run_dir, phase, step), f"{phase} step {step}", TIMEOUT)
        if role == "supervisor":
            process.kill()
            process.wait(10)
            wait_for(lambda: not any(pid_of(r, run_dir) for r in ROLES), "end of the roles", 20)
            process = start(run_dir)
        else:
            strike(role, run_dir, signal.SIGKILL)
        time.sleep(1.0)
    code = process.wait(TIMEOUT)
    if code:
        raise RuntimeError(f"{role}: exit code {code}\n{said(run_dir)[-3000:]}")
    summary = json.loads((run_dir / "summary.json").read_text())
    books = read_books(run_dir)
    shown = {k: v for k, v in summary.items() if k.startswith("eval_") or k in ("steps", "process_deaths")}
    return {
        "killed_at": [f"{phase} step {step}" for phase, step in moments(role)],
        "seconds": round(time.monotonic() - begun),
        "exit_code": code,
        **shown,
        "complaints": complaints(books, get_config().trainer.max_steps),
        **{k: v for k, v in books.items() if k != "steps"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[*ROLES, "supervisor"], help="one role (default: all)")
    roles = [parser.parse_args().only] if parser.parse_args().only else [*ROLES, "supervisor"]
    recipe = hashlib.sha256(get_config().to_json().encode()).hexdigest()[:12]
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for role in roles:
        if results.get(role, {}).get("recipe") == recipe:
            print(f"{role}: already there", flush=True)
            continue
        with tempfile.TemporaryDirectory() as folder:
            outcome = run(role, Path(folder) / "run")
        results[role] = {"recipe": recipe, "machine": f"{platform.machine()}, Python {platform.python_version()}"}
        results[role] |= outcome
        write_json(RESULTS, results)
        print(role, json.dumps(results[role], indent=2), flush=True)


if __name__ == "__main__":
    main()
