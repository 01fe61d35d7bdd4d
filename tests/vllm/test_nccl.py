"""A real vLLM server takes versions by NCCL from the trainer's memory, through vLLM's own engine for it.

There is no GPU here: NCCL itself is a stand-in on host memory, in the trainer and in vLLM alike.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from intellect_jax.bridge.huggingface import from_hf, to_hf
from intellect_jax.bridge.published import Published
from intellect_jax.monitor.metrics import read_metrics
from intellect_jax.orchestrator.fleet import Fleet, FleetError
from intellect_jax.transport.nccl.group import Group
from intellect_jax.transport.nccl.library import Library
from intellect_jax.transport.nccl.sender import NcclServing
from intellect_jax.types import Version
from tests.nccl import stand_in
from tests.vllm.servers import POLICIES, PYTHON, server_config, serving, write_model
from tests.vllm.test_exactness import BOUND, TEMPERATURE, distances, moved

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
V0 = Version(0, 0)
UPDATES = 5
ARGUMENTS = ("--worker-extension-cls=nccl_on_host.Extension",)


def interpreter(folder):
    """vLLM's, which finds ``nccl_on_host``."""
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{Path(__file__).parent}" exec {PYTHON} "$@"\n')
    script.chmod(0o755)
    return str(script)


def test_tokens_are_those_of_versions_that_came_by_nccl(tmp_path, monkeypatch):
    cfg, library = POLICIES["glm4_moe"], stand_in(tmp_path)
    monkeypatch.setenv("VLLM_NCCL_SO_PATH", library)
    trainer = NcclServing("127.0.0.1", 0, "", Library(library, library))
    config = server_config(write_model(tmp_path / "model", cfg), arguments=ARGUMENTS)
    config.sampler.python = interpreter(tmp_path)
    config.weights.transport, config.weights.address = "nccl", f"http://127.0.0.1:{trainer.port}"
    config.weights.dtype = "bfloat16"

    versions = [Published(jax.device_put(moved(cfg, i)), cfg, "bfloat16").lying() for i in range(UPDATES + 2)]

    def arrived(number):
        """What vLLM computes with, in float32."""
        tensors = dict(to_hf(moved(cfg, number), cfg, "bfloat16"))
        return from_hf(tensors.__getitem__, tensors, cfg)

    async def update(fleet, number):
        trainer.sender.hold(Version(0, number), versions[number])
        await fleet.update(Path(f"/nowhere/v0-{number}/manifest.json"), Version(0, number))

    async def generate():
        prompts = [np.random.default_rng(i).integers(3, 90, size=1 + i).tolist() for i in range(8)]
        sampling = {"max_tokens": 400, "temperature": TEMPERATURE, "ignore_eos": True}
        async with Fleet(config.sampler.urls, config) as fleet:
            await fleet.wait_ready(180)
            await update(fleet, 0)
            running = [asyncio.ensure_future(fleet.generate(prompt, sampling, None)) for prompt in prompts]
            for number in range(1, UPDATES + 1):
                await asyncio.sleep(0.1)
                await update(fleet, number)
            nonlocal trainer
            trainer.close()
            trainer = NcclServing("127.0.0.1", trainer.port, "", Library(library, library))  # it was started again
            await update(fleet, UPDATES + 1)
            last = await fleet.generate(prompts[0], {**sampling, "max_tokens": 16}, None)
            return list(zip([*prompts, prompts[0]], [*await asyncio.gather(*running), last], strict=True))

    with serving(config, tmp_path / "run"):
        pairs = asyncio.run(generate())
        trainer.linger(Version(0, UPDATES + 1), 1, timeout=5)
        assert trainer.sender.readers(Version(0, UPDATES + 1)) == 1
    trainer.close()
    seen = {version for _, generation in pairs for version in generation.versions}
    assert seen >= {0, UPDATES + 1} and len(seen) > 2
    apart = {number: distances(cfg, arrived(number), number, pairs).max() for number in seen}
    others = min(distances(cfg, arrived(number - 1 if number else 1), number, pairs).max() for number in seen)
    print(f"worst {max(apart.values()):.1e} over {len(seen)} versions; under neighbouring ones {others:.2f}")
    assert max(apart.values()) <= BOUND and others > 1e-2


def test_a_server_whose_version_does_not_come_ends(tmp_path, monkeypatch):
    cfg, library = POLICIES["qwen3"], stand_in(tmp_path)
    monkeypatch.setenv("VLLM_NCCL_SO_PATH", library)
    monkeypatch.setenv("NCCL_LEAST_S", "5")
    monkeypatch.setattr(Group, "send", lambda self, version, tensors: None)  # the trainer is gone, and says nothing
    trainer = NcclServing("127.0.0.1", 0, "", Library(library, library))
    trainer.sender.hold(V0, Published(jax.device_put(moved(cfg, 0)), cfg, "bfloat16").lying())
    config = server_config(write_model(tmp_path / "model", cfg), arguments=ARGUMENTS)
    config.sampler.python, config.weights.dtype = interpreter(tmp_path), "bfloat16"
    config.weights.transport, config.weights.address = "nccl", f"http://127.0.0.1:{trainer.port}"

    async def update():
        async with Fleet(config.sampler.urls, config) as fleet:
            await fleet.wait_ready(180)
            with contextlib.suppress(TimeoutError, FleetError):
                await asyncio.wait_for(fleet.update(Path("/nowhere/v0-0/manifest.json"), V0), 20)

    with serving(config, tmp_path / "run") as process:
        asyncio.run(update())
        assert process.wait(60) == 1
    trainer.close()
    log = (tmp_path / "run" / "logs" / "sampler-0.log").read_text()
    assert "FATAL version 0.0 has not come in 5 s" in log and "FATAL vLLM ended with" in log


def test_a_run_gets_every_version_by_nccl_and_the_guard_finds_it_exact(tmp_path):
    folder = tmp_path / "lib"
    folder.mkdir()
    library = Path(stand_in(folder))
    for name in ("libnccl.so.2", "libcuda.so.1"):
        (folder / name).symlink_to(library)
    env = os.environ | {"LD_LIBRARY_PATH": str(folder), "VLLM_NCCL_SO_PATH": str(library)}
    command = [
        *(sys.executable, "-m", "launch", "--config=configs/debug_vllm_cpu.py", f"--config.run.root={tmp_path}"),
        *("--config.run.name=nccl", "--config.sft.steps=5", "--config.sft.decay_steps=2", "--config.eval.prompts=12"),
        *("--config.orchestrator.batch_size=16", "--config.orchestrator.group_size=4", "--config.trainer.max_steps=4"),
        *("--config.weights.transport=nccl", "--config.weights.dtype=bfloat16", "--config.guard.every=1"),
        *(f"--config.sampler.python={interpreter(tmp_path)}", f"--config.sampler.arguments={ARGUMENTS!r}"),
    ]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run_dir = tmp_path / "nccl"
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["steps"], summary["process_deaths"], summary["sampler_backend"]) == (4, 0, "vllm")
    log = (run_dir / "logs" / "trainer.log").read_text()
    assert log.count("is connected by NCCL, 1 workers") == 2 and "WARNING" not in log, log
    updates = {row["role"]: row["updates/count"] for row in read_metrics(run_dir) if "updates/count" in row}
    assert min(updates["sampler-0"], updates["sampler-1"]) >= 2
