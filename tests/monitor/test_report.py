"""report.html of a run with deaths, lost steps and a pause: its numbers, its bounds, and how it looks in a browser."""

import asyncio
import json
import re
import subprocess
import sys

import pytest

from intellect_jax.monitor.metrics import FILE
from intellect_jax.monitor.report.build import page, write_report
from intellect_jax.monitor.report.data import report_data
from intellect_jax.monitor.report.rollouts import SIDE_BY_SIDE, TOKENS
from intellect_jax.monitor.report.series import POINTS
from tests.monitor import browser
from tests.monitor.synthetic_run import PAUSE, STEP, write_run

CHARTS = [
    *("reward", "loss", "grad", "entropy", "kl", "staleness-histogram", "staleness", "queue", "requests", "speed"),
    *("time-trainer", "time-sampler", "time-orchestrator", "sft-loss", "sft-grad", "sft-rate"),
]
KINDS = ["early", "middle", "late", "best", "worst"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("report") / "run", steps=60)


@pytest.fixture(scope="module")
def data(run_dir):
    return report_data(run_dir)


def test_curves_follow_the_surviving_steps(data):
    rl = data["rl"]
    assert rl["step"] == list(range(1, 61))
    assert {len(column) for name, column in rl.items()} == {60}
    assert rl["reward"][-1] > rl["reward"][0] + 0.5
    assert rl["kl_fresh"][3] == pytest.approx(1e-11)
    assert rl["trainer_speed"][3] == pytest.approx(6000 / 2.2, rel=1e-4)
    assert rl["staleness"][4] == [100, 300, 605]
    assert [(e["step"], e["reward"]) for e in data["evals"]] == [(0, 0.2), (60, 0.9)]
    assert data["sft"]["loss"][0] == 4.0


def test_speeds_and_waits_come_from_what_the_roles_wrote(data):
    rl = data["rl"]
    assert rl["sampler_speed"][10] == pytest.approx(3000 / STEP, rel=0.01)
    assert min(rl["sampler_speed"]) >= 0  # although a restarted sampler counts from 0 again
    assert rl["queue"][10] == pytest.approx(0.2 / STEP, abs=1e-3)  # a batch lies there for 0.2 s of a step
    assert rl["batch_ready"][10] + rl["batch_none"][10] == pytest.approx(STEP, rel=1e-3)
    assert rl["sampler_busy"][10] + rl["sampler_idle"][10] == pytest.approx(STEP, rel=1e-3)
    assert 0 < rl["sampler_busy"][10] < STEP
    assert rl["other"][10] == pytest.approx(0.0, abs=1e-3)
    assert rl["other"][20] == pytest.approx(8.0, abs=0.1)  # everything stood still when the sampler had died


def test_deaths_lost_steps_and_the_pause_are_on_the_timeline(data):
    timeline = data["timeline"]
    texts = [event["text"] for event in timeline["events"]]
    assert "sampler-0 died: killed by SIGKILL after 50 s" in texts
    assert "trainer died: exit code 1 after 1 min 00 s" in texts
    assert "trainer goes on with step 27; 4 steps taken again" in texts
    assert "run resumed" in texts and "1 rollout failed before batch 47" in texts
    assert any(kind == "lost" for _, _, kind in timeline["lanes"]["trainer"])
    assert len(timeline["lanes"]["sampler-0"]) >= 2  # it was away
    assert timeline["end"] < PAUSE / 2
    assert [event["time"] for event in timeline["events"]] == sorted(event["time"] for event in timeline["events"])


def test_the_reader_shows_whole_groups_with_exact_tokens(data):
    reader = data["reader"]
    assert list(reader["kinds"]) == KINDS
    group = reader["kinds"]["early"][0]
    text = "".join(reader["texts"][i] for i in group["prompt"][0]["tokens"])
    assert group["step"] == 1 and re.fullmatch(r"<\|user\|>task \d: </script><b>reverse</b><\|assistant\|>", text)
    assert [r["reward"] for r in group["rollouts"]] == [0.75, 0.5, 0.25, 0.0]
    late = reader["kinds"]["late"][0]
    node = late["rollouts"][0]["nodes"][0]
    assert len(node["tokens"]) == len(node["logprobs"]) == 31
    assert node["versions"] == [[58, 16], [59, 15]]
    assert reader["texts"][node["tokens"][-1]] == "<|end|>" and node["tokens"][-1] in reader["special"]


def test_a_run_that_has_just_begun_has_a_report(tmp_path):
    run_dir = write_run(tmp_path / "run", steps=1)
    (run_dir / FILE).unlink()
    for file in (run_dir / "rollouts").iterdir():
        file.unlink()
    data = report_data(run_dir)
    assert data["status"] == "running" and data["rl"] == {"step": []} and data["reader"]["kinds"] == {}
    assert "</html>" in page(data)


def test_a_long_run_stays_small(tmp_path):
    run_dir = write_run(tmp_path / "run", steps=3000, answer=900, group_size=24, turns=2, files=3)
    data = report_data(run_dir)
    assert len(data["rl"]["step"]) <= POINTS and data["rl"]["step"][-1] == 3000
    assert sum(map(sum, data["rl"]["staleness"])) == 3000 * 1000 + sum(step % 50 for step in range(1, 3001))
    rollouts = data["reader"]["kinds"]["late"][0]["rollouts"]
    assert len(rollouts) == SIDE_BY_SIDE
    assert sum(len(node["tokens"]) for node in rollouts[0]["nodes"]) == TOKENS
    shown = sum(node["cut"] for node in rollouts[0]["nodes"]) + TOKENS
    assert shown == rollouts[0]["tokens"] + len("go on") + 2
    assert write_report(run_dir).stat().st_size < 3_000_000


def test_no_text_can_leave_its_place_and_nothing_is_loaded(run_dir):
    hostile = {"name": "</script><b>x</b><!--SCRIPT--><!--"}
    encoded = re.search(r'<script type="application/json" id="data">(.*?)</script>', page(hostile), re.DOTALL)
    assert json.loads(encoded[1]) == hostile
    html = write_report(run_dir).read_text()
    assert not re.search(r"(src|href)=[\"']?(https?:)?//|@import|url\(", html)
    assert not list(run_dir.glob(".report*"))


def test_the_command_needs_no_jax(run_dir):
    (run_dir / "report.html").unlink(missing_ok=True)
    program = (
        f"import sys, runpy; sys.argv = ['report', {str(run_dir)!r}];"
        "runpy.run_module('intellect_jax.monitor.report', run_name='__main__'); assert 'jax' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(run_dir / "report.html")


@pytest.mark.slow
@pytest.mark.skipif(browser.binary() is None, reason="no Chromium or Chrome on this machine")
def test_in_a_browser(tmp_path):
    path = write_report(write_run(tmp_path / "run", steps=3000, answer=500, group_size=16, files=6))
    assert path.stat().st_size < 5_000_000
    asyncio.run(_look_at(path, tmp_path / "profile"))


async def _look_at(path, profile):
    async with browser.new_page(profile) as tab:
        await tab.open(path, dark=True)
        assert float(await tab.evaluate("document.documentElement.dataset.ready")) < 2000  # milliseconds
        for chart in CHARTS:
            shapes = f"document.querySelectorAll('#chart-{chart} svg path, #chart-{chart} svg rect').length"
            assert await tab.evaluate(shapes) > 1, chart
        await _themes(tab)
        await _cursor(tab)
        await _timeline(tab)
        await _reader(tab)
        await tab.open(path, width=420)
        assert await tab.evaluate("document.documentElement.scrollWidth") <= 420
        assert tab.problems == []


async def _themes(tab):
    background = "getComputedStyle(document.body).backgroundColor"
    assert await tab.evaluate("document.documentElement.dataset.theme") == "dark"
    dark = await tab.evaluate(background)
    await tab.evaluate("document.getElementById('theme').click()")
    assert await tab.evaluate(background) != dark


async def _cursor(tab):
    """One chart's pointer moves the line in all, and shows that step's numbers."""
    await tab.hover("#chart-reward svg", 0.5, 0.5)
    shown = (
        "[...document.querySelectorAll('[id^=chart-] .cursor')].filter(e => e.getAttribute('visibility') == 'visible')"
    )
    assert await tab.evaluate(f"{shown}.length") >= 11
    assert re.search(r"step 1,[45]\d\d", await tab.evaluate("document.getElementById('tooltip').textContent"))


async def _timeline(tab):
    text = await tab.evaluate("document.getElementById('timeline').textContent")
    for part in ("trainer", "orchestrator", "sampler-0", "sampler-0 died: killed by SIGKILL", "run resumed", "lost"):
        assert part in text, part
    assert await tab.evaluate("document.querySelectorAll('#timeline .mark').length") > 5
    assert await tab.evaluate("document.querySelectorAll('#chart-loss .fault').length") == 3


async def _reader(tab):
    pick = "document.querySelector('#rollouts [data-value={}]').click()"
    for kind in KINDS:
        await tab.evaluate(pick.format(kind))
        assert await tab.evaluate("document.querySelectorAll('#rollouts article').length") == 16, kind
    await tab.evaluate(pick.format("late"))
    assert await tab.evaluate("document.querySelector('#rollouts article').querySelectorAll('sup').length") == 1
    first = "document.querySelector('#rollouts article .t').style.background"
    before = await tab.evaluate(first)
    await tab.evaluate(pick.format("advantage"))
    assert await tab.evaluate(first) != before
    assert await tab.evaluate("document.querySelectorAll('#rollouts b').length") < 25  # the prompt's <b> is text
    await tab.hover("#rollouts article .t")
    assert "log-probability" in await tab.evaluate("document.getElementById('tooltip').textContent")
