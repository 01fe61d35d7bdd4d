"""Folders onto several devices and processes: what is read, and what all of them write together."""

import pytest

from intellect_jax.bridge.huggingface import entries
from tests.bridge.processes import run_together
from tests.bridge.test_folders import SMALL, UNUSED, assert_same_tensors, foreign, tensors_of


def start(folder, out, processes, *axes, devices):
    """What each process printed."""
    return run_together(
        "folder_run.py", processes, lambda index, port: [folder, out, processes, index, port, *axes], devices
    )


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
