"""The two servers of the race: our sampler and vLLM, each the process that the launcher starts, on the same policy."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ml_collections import ConfigDict

from benchmarks.engine_race.models import Model
from intellect_jax.config import default_config, to_plain, validate
from launch import processes
from launch.addresses import free_ports

ROOT = Path(__file__).parents[2]
CORES = os.cpu_count() or 1


def server_config(backend: str, model: Model, folder: Path, dtype: str, python: str = "") -> ConfigDict:
    """One server of ``backend`` on all cores; everything else as a run with this policy would have it."""
    config = default_config()
    config.model.path = str(folder)
    config.weights.dtype = "float32"
    config.trainer.max_steps, config.sft.steps, config.sft.data = 0, 1, "made-up.jsonl"  # nothing here trains
    config.trainer.seq_buckets, config.trainer.microbatch_buckets = (model.max_len,), (64,)
    config.launch.threads = CORES
    config.launch.start_timeout = 600.0
    config.orchestrator.max_attempts = 1  # a failure ends the race
    config.orchestrator.max_new_tokens = model.max_len // 2
    sampler = config.sampler
    sampler.backend, sampler.platform, sampler.python = backend, "cpu", python
    sampler.dtype, sampler.slots, sampler.max_len = dtype, 64, model.max_len
    sampler.prefill_buckets, sampler.prefill_rows = model.prefill_buckets, 8
    sampler.decode_steps = model.decode_steps
    sampler.request_timeout = 600.0
    sampler.urls = (f"http://127.0.0.1:{free_ports(1)[0]}",)
    return config


@contextmanager
def serving(config: ConfigDict, run_dir: Path, tokenizer: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The sampler's role as a process; what it says is in <run_dir>/logs/sampler-0.log.

    Raises ValueError for a configuration that the role would refuse.
    """
    problems = validate(config)
    if problems:
        raise ValueError(problems)
    run_dir.mkdir(parents=True)
    (run_dir / "tokenizer").symlink_to(tokenizer.absolute(), target_is_directory=True)
    (run_dir / "config.json").write_text(json.dumps(to_plain(config)))
    argv = [sys.executable, "-m", "launch", "sampler", f"--config={run_dir / 'config.json'}", "--index=0"]
    argv += [f"--config.run.root={run_dir.parent}", f"--config.run.name={run_dir.name}"]
    process = processes.start(argv, {"PYTHONPATH": str(ROOT)}, run_dir / "logs" / "sampler-0.log")
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        finally:
            processes.signal_group(process, signal.SIGKILL)
