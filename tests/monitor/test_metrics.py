import subprocess
import sys

import numpy as np
import pytest

from intellect_jax.config import default_config, validate
from intellect_jax.monitor.metrics import FILE, Metrics, Tail, read_metrics
from tests.disks import fill, small_disk

__all__ = ["small_disk"]


def test_rows_come_back_as_numbers(tmp_path):
    metrics = Metrics(tmp_path, "trainer")
    metrics.log(3, {"loss/total": np.float32(0.5), "tokens/trained": np.int64(7)})
    metrics.log(None, {"run/started": 1})
    first, second = read_metrics(tmp_path)
    assert (first["role"], first["step"], first["loss/total"], first["tokens/trained"]) == ("trainer", 3, 0.5, 7)
    assert second["step"] is None and second["time"] >= first["time"] > 1.6e9


def test_rows_of_many_processes_never_mix(tmp_path):
    program = (
        "import pathlib, sys\nfrom intellect_jax.monitor.metrics import Metrics\n"
        "m = Metrics(pathlib.Path(sys.argv[1]), sys.argv[2])\n"
        "for step in range(500): m.log(step, {f'a/{i}': step for i in range(50)})"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path), f"role-{i}"]) for i in range(4)]
    assert [writer.wait(60) for writer in writers] == [0] * 4
    rows = read_metrics(tmp_path)
    assert len(rows) == 2000 == sum(bool(line) for line in (tmp_path / FILE).read_bytes().splitlines())
    assert [row["step"] for row in rows if row["role"] == "role-2"] == list(range(500))


def test_a_torn_row_spoils_no_other(tmp_path):
    Metrics(tmp_path, "trainer").log(1, {"a/b": 1})
    with (tmp_path / FILE).open("a") as file:
        file.write('{"time": 1, "role": "trai')
    assert [row["step"] for row in read_metrics(tmp_path)] == [1]
    Metrics(tmp_path, "trainer").log(2, {"a/b": 2})
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]


def test_what_another_process_could_not_write_whole_spoils_no_row_after_it(tmp_path):
    metrics = Metrics(tmp_path, "trainer")
    metrics.log(1, {"a/b": 1})
    row = (tmp_path / FILE).read_bytes()
    for cut in range(1, len(row)):
        with (tmp_path / FILE).open("ab") as file:
            file.write(row[:cut])
        metrics.log(1 + cut, {"a/b": 1})
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, len(row) + 1))


def test_a_tail_gives_each_row_once_and_whole(tmp_path):
    tail = Tail(tmp_path)
    assert tail.new_rows() == []
    Metrics(tmp_path, "trainer").log(1, {})
    line = (tmp_path / FILE).read_bytes()
    assert [row["step"] for row in tail.new_rows()] == [1]
    with (tmp_path / FILE).open("ab") as file:
        file.write(line[:10])
        file.flush()
        assert tail.new_rows() == []
        file.write(line[10:])
    assert [row["step"] for row in tail.new_rows()] == [1]


def test_tensorboard_holds_the_same_rows(tmp_path):
    metrics = Metrics(tmp_path, "trainer", tensorboard=True)
    metrics.log(3, {"loss/total": np.float32(0.5)})
    metrics.log(None, {"requests/running": 2})
    metrics.close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [3, None]
    (file,) = (tmp_path / "tensorboard" / "trainer").iterdir()
    found = {v.tag: (e.step, v.simple_value, e.wall_time) for e in events(file) for v in e.summary.value}
    rows = {row["step"]: row for row in read_metrics(tmp_path)}
    assert found["loss/total"][:2] == (3, 0.5)
    assert found["requests/running"] == (int(rows[None]["time"]), 2, rows[None]["time"])


def test_tensorboard_is_refused_in_one_line_where_it_is_not_installed(monkeypatch):
    config = default_config()
    config.monitor.tensorboard = True
    monkeypatch.setitem(sys.modules, "tensorboardX", None)  # what an import that must fail leaves
    (problem,) = validate(config)
    assert problem.startswith("monitor.tensorboard=True") and "pip install 'intellect-jax[tensorboard]'" in problem


def events(path):
    """Of a TensorBoard file: records of length (8 bytes), its checksum (4), the event, its checksum (4)."""
    from tensorboardX.proto.event_pb2 import Event

    data, at = path.read_bytes(), 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 8], "little")
        yield Event.FromString(data[at + 12 : at + 12 + size])
        at += size + 16


def test_rows_that_can_be_spared_are_left_out_while_the_disk_is_full(small_disk, caplog):
    spare, needed = Metrics(small_disk, "sampler-0", spare=True), Metrics(small_disk, "trainer")
    spare.log(1, {"a/b": 1})
    filling = fill(small_disk)
    for step in range(2, 200):
        spare.log(step, {"a/b": 1})
    with pytest.raises(OSError, match=r"No space left|cut short"):
        for step in range(200):
            needed.log(step, {"a/b": 1})
    filling.unlink()
    spare.log(200, {"a/b": 1})
    needed.log(201, {"a/b": 1})
    steps = [row["step"] for row in read_metrics(small_disk)]
    assert steps[0] == 1 and steps[-2:] == [200, 201] and len(steps) < 100
    assert sum("left out while the disk is full" in record.message for record in caplog.records) == 1
