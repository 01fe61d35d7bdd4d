"""What the orchestrator tells its watchdog, seen in the heartbeat file."""

import json
import subprocess
import sys
import time
from pathlib import Path

from intellect_jax.bridge.tokenizer import write_character_tokenizer

PROGRAM = """
import asyncio, sys
from pathlib import Path
from intellect_jax.config import default_config, env
from intellect_jax.monitor import watchdog
from intellect_jax.orchestrator.fleet import Fleet
from intellect_jax.orchestrator.main import Orchestrator
from intellect_jax.transport.jobs import JobPool
from launch import addresses

async def main(run_dir):
    config = default_config()
    config.envs = (env("reverse_text"),)
    addresses.choose(config)
    async with Fleet(config.sampler.urls, config) as fleet:
        async with JobPool(config.environments.address, max_attempts=1, start_timeout=5.0) as jobs:
            orchestrator = Orchestrator(config, run_dir, fleet, jobs)
            orchestrator.train_sizes = orchestrator.eval_sizes = {"reverse_text": 10}
            await orchestrator.train()

run_dir = Path(sys.argv[1])
watchdog.BEAT = 0.05
watchdog.start(run_dir, "orchestrator", timeout=60.0, partner_timeout=1.0)
asyncio.run(main(run_dir))
"""


def test_without_a_trainer_it_waits_for_one(tmp_path):
    write_character_tokenizer(tmp_path / "tokenizer")
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], stderr=subprocess.PIPE, text=True)
    try:
        standing = first_told(tmp_path / "heartbeats" / "orchestrator", process)
    finally:
        process.kill()
        process.wait()
    assert standing["phase"] == "waiting for the trainer's first version"
    assert standing["waits_for"] == "trainer"


def first_told(file: Path, process: subprocess.Popen[str]) -> dict[str, str]:
    deadline = time.monotonic() + 30.0
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        if file.exists() and (standing := json.loads(file.read_text()))["phase"] != "starting":
            return standing
        time.sleep(0.05)
    raise AssertionError("it told nothing within 30 s")
