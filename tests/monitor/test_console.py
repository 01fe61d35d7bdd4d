import io

import pytest

from intellect_jax.monitor import console as module
from intellect_jax.monitor.console import Console, Progress, plain
from intellect_jax.monitor.metrics import Metrics
from intellect_jax.monitor.text import duration
from tests.disks import fill, small_disk

__all__ = ["small_disk"]


def step(time: float, number: int, role: str = "trainer", **values: float) -> dict:
    return {"time": time, "role": role, "step": number, "reward/mean": 0.5, "staleness/mean": 1.25, **values}


def sampler(time: float, tokens: int, name: str = "sampler-0") -> dict:
    return {"time": time, "role": name, "step": None, "tokens/generated": tokens}


def progress(*rows: dict) -> Progress:
    state = Progress(sft_steps=50, max_steps=100)
    for row in rows:
        state.add(row)
    return state


def test_nothing_yet():
    assert plain(progress().parts(0.0)) == "starting"


def test_an_rl_line():
    state = progress(step(10.0, 1), step(12.0, 2), step(14.0, 3), sampler(10.0, 0), sampler(14.0, 2000))
    assert plain(state.parts(15.0)) == "step 3/100  reward 0.500  staleness 1.25  tokens/s 500  left 3 min 13 s"


def test_an_sft_line_counts_its_own_steps():
    state = progress(step(1.0, 9, "sft", **{"loss/ce": 1.5}), step(2.0, 10, "sft", **{"loss/ce": 1.25}))
    assert plain(state.parts(2.0)).startswith("SFT step 10/50  loss 1.250")
    assert state.seconds_left(2.0) == 40.0


def test_speeds_start_anew_after_a_restart():
    state = progress(step(1.0, 4), step(2.0, 5), step(60.0, 5), sampler(1.0, 900), sampler(2.0, 1000), sampler(9.0, 10))
    assert state.seconds_left(60.0) is None and state.tokens_per_second() is None
    state.add(step(62.0, 6))
    assert state.seconds_left(62.0) == pytest.approx(188.0)


def test_speeds_of_several_samplers_add_up():
    rows = [sampler(t, int(100 * t), name) for t in (1.0, 2.0) for name in ("sampler-0", "sampler-1")]
    assert progress(*rows).tokens_per_second() == pytest.approx(200.0)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_elsewhere_plain_lines_only_when_something_is_new(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PLAIN_INTERVAL", 0.0)
    out = io.StringIO()
    console = Console(Progress(0, 100), tmp_path, out)
    metrics = Metrics(tmp_path, "trainer")
    for number in (1, 2):
        metrics.log(number, {"reward/mean": 0.25})
        console.tick()
        console.tick()
    console.say("env-0 ended")
    lines = out.getvalue().splitlines()
    assert [line.split("  left")[0] for line in lines] == [
        "step 1/100  reward 0.250", "step 2/100  reward 0.250", "env-0 ended",
    ]  # fmt: skip


def test_a_terminal_has_one_live_line_with_colours(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr(module, "LIVE_INTERVAL", 0.0)
    out = Terminal()
    console = Console(Progress(0, 100), tmp_path, out)
    Metrics(tmp_path, "trainer").log(1, {"reward/mean": 0.25, "staleness/mean": 1.0})
    console.tick()
    assert out.getvalue() == "\r\x1b[K\x1b[2mstep\x1b[0m \x1b[1m1/100\x1b[0m  \x1b[2mreward\x1b[0m \x1b[1m0.250\x1b[0m"
    console.say("hello")
    assert out.getvalue().endswith("\r\x1b[Khello\n")


def test_no_colours_when_they_are_unwanted(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    Console(Progress(0, 100), tmp_path, out).tick()
    assert out.getvalue() == "\r\x1b[Kstarting"


@pytest.mark.parametrize("seconds, text", [(41.6, "42 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_the_last_state_stays(tmp_path):
    out = io.StringIO()
    console = Console(Progress(0, 100), tmp_path, out)
    console.tick()
    Metrics(tmp_path, "trainer").log(7, {"reward/mean": 0.25})
    console.finish()
    assert out.getvalue() == "starting\nstep 7/100  reward 0.250\n"


def test_a_full_disk_does_not_stop_the_console_and_loses_no_line(small_disk):
    out = small_disk / "out"
    with out.open("w") as stream:
        console = Console(Progress(0, 10), small_disk / "run", stream)
        console.say("before")
        filling = fill(small_disk)
        for number in range(60):
            console.say(f"line {number} " + "x" * 80)
        filling.unlink()
        console.say("after")
    lines = out.read_text().splitlines()
    assert lines[0] == "before" and lines[-1] == "after" and len(lines) == 62
