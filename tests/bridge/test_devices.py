"""Folders onto several devices and processes: what is read, and what all of them write together."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from intellect_jax.bridge.huggingface import entries
from tests.bridge.test_folders import SMALL, UNUSED, assert_same_tensors, foreign, tensors_of

ROOT = Path(__file__).parents[2]


def start(folder, out, processes, *axes, devices):
    """What each process printed."""
    env = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script = str(Path(__file__).with_name("folder_run.py"))
    running = [
        subprocess.Popen(
            [sys.executable, script, str(folder), str(out), str(processes), str(index), port, *axes],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(processes)
    ]
    try:
        ended = [process.communicate(timeout=240) for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (_, stderr) in zip(running, ended, strict=True):
        assert process.returncode == 0, stderr[-3000:]
    return [json.loads(stdout.splitlines()[-1]) for stdout, _ in ended]


@pytest.mark.parametrize("fused", [False, True], ids=["per_expert", "fused"])
def test_sharded_arrays_go_out_as_they_came_in(tmp_path, fused):
    tensors = foreign(tmp_path / "in", fused=fused)
    (found,) = start(tmp_path / "in", tmp_path / "out", 1, "data=2", "expert=2", "tensor=2", devices=8)
    assert found["devices"] == 8
    assert_same_tensors(tensors_of(tmp_path / "out"), tensors)
    assert found["fetched"] == len({(entry.path, entry.index[:1]) for entry in entries(SMALL)})  # each layer once
    # Replicas are copies on the devices: every byte is read once.
    assert found["read"] == sum(tensor.nbytes for name, tensor in tensors.items() if name not in UNUSED)


def test_two_processes_read_their_halves_and_write_one_folder(tmp_path):
    assert SMALL.n_routed_experts % 4 == 0
    tensors = foreign(tmp_path / "in")
    found = start(tmp_path / "in", tmp_path / "out", 2, "fsdp=2", "expert=2", devices=2)
    assert [each["devices"] for each in found] == [4, 4]
    assert_same_tensors(tensors_of(tmp_path / "out"), tensors)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    experts = sum(tensor.nbytes for name, tensor in tensors.items() if ".experts." in name)
    used = sum(tensor.nbytes for name, tensor in tensors.items() if name not in UNUSED)
    for each in found:  # fsdp is the outer axis of the processes: each holds half of what is sharded over it
        assert experts / 2 <= each["read"] < 0.6 * used
