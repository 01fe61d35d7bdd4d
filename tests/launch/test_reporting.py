"""The report is written while a run goes on, by a process that ends with it."""

import time

from launch import reporting
from tests.monitor.synthetic_run import write_run


def test_the_report_is_written_during_a_run_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(reporting, "EVERY", 0.3)
    started = []
    start = reporting.processes.start
    monkeypatch.setattr(reporting.processes, "start", lambda *args: started.append(start(*args)) or started[0])
    run_dir = write_run(tmp_path / "run", steps=3)
    with reporting.kept(run_dir):
        deadline = time.monotonic() + 60.0
        while not (run_dir / "report.html").exists():
            assert time.monotonic() < deadline, "no report within 60 s"
            time.sleep(0.05)
        (run_dir / ".report.html.1").touch()  # as of a writer that is killed
    assert started[0].poll() is not None
    assert not list(run_dir.glob(".report.html.*"))


def test_the_last_report_says_when_it_fails(tmp_path):
    run_dir = write_run(tmp_path / "run", steps=1)
    (run_dir / "logs").mkdir()
    assert reporting.write_last(run_dir) is None and (run_dir / "report.html").exists()
    (run_dir / "config.json").unlink()
    assert reporting.write_last(run_dir) == f"report.html could not be written: see {run_dir}/logs/report.log"
