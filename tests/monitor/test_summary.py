"""summary.json from small metrics files whose sums are known."""

import json
import math

import pytest

from intellect_jax import config as schema
from intellect_jax.monitor import summary as module
from intellect_jax.monitor.closing import closing_lines
from intellect_jax.monitor.metrics import FILE

KEYS = """run_dir, sampler_backend, steps, wall_seconds, sft_steps, eval_reward_before_rl, eval_reward_after_rl,
eval_exact_before_rl, eval_exact_after_rl, trained_tokens, stale_token_fraction, mixed_version_rollouts,
dropped_rollouts, mismatch_kl_mean, mismatch_kl_fresh, mismatch_max_fresh, trainer_idle_fraction,
sampler_tokens_per_second, trainer_tokens_per_second, recompilations_after_warmup, export_dir"""


def row(time: float, role: str, step: int | None = None, **values: float) -> dict:
    return {"time": time, "role": role, "step": step} | {name.replace("__", "/"): v for name, v in values.items()}


def rl(time: float, step: int, **values: float) -> dict:
    usual = {"tokens__trained": 100, "tokens__total": 300, "tokens__stale": 25, "mismatch__kl_sum": 2.0,
             "mismatch__fresh_count": 50, "mismatch__fresh_kl_sum": 1e-7, "mismatch__fresh_max": 1e-5 * step,
             "rollouts__mixed_version": 3, "rollouts__dropped": 1, "time__wait_s": 1.0, "time__step_s": 2.0,
             "time__publish_s": 1.0, "compile__after_warmup": 0}  # fmt: skip
    return row(time, "trainer", step, **(usual | values))


@pytest.fixture
def summarize(tmp_path):
    def run(rows: list[dict]) -> dict:
        (tmp_path / "config.json").write_text(json.dumps(schema.to_plain(schema.default_config())))
        (tmp_path / FILE).write_text("".join(json.dumps(r) + "\n" for r in rows))
        return module.write_summary(tmp_path)

    return run


def test_all_keys_are_there_even_when_nothing_happened(summarize, tmp_path):
    summary = summarize([])
    assert set(KEYS.replace("\n", " ").replace(",", " ").split()) <= summary.keys()
    assert summary["eval_reward_after_rl"] is None and summary["stale_token_fraction"] is None
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert closing_lines(summary, tmp_path, "again")[-2:] == [
        f"  run                   {tmp_path}: summary.json, metrics.jsonl", "next: again",
    ]  # fmt: skip


def test_sums_over_a_run(summarize, tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "config.json").touch()
    summary = summarize(
        [
            row(0.0, "launch", run__started=1),
            row(5.0, "sft", 1, compile__after_warmup=0),
            row(6.0, "sft", 2, compile__after_warmup=0),
            row(7.0, "orchestrator", eval__reward=0.5, eval__exact_match=0.01, eval__version=0, eval__final=0),
            row(10.0, "sampler-0", tokens__generated=1000),
            rl(12.0, 1),
            row(14.0, "sampler-0", tokens__generated=3000),
            rl(16.0, 2, time__wait_s=3.0, tokens__stale=75),
            row(18.0, "orchestrator", eval__reward=0.95, eval__exact_match=0.7, eval__version=2, eval__final=1),
            row(20.0, "launch", run__ended=1),
        ]
    )
    assert summary["steps"] == 2 and summary["sft_steps"] == 2 and summary["wall_seconds"] == 20.0
    assert (summary["eval_reward_before_rl"], summary["eval_reward_after_rl"]) == (0.5, 0.95)
    assert (summary["eval_exact_before_rl"], summary["eval_exact_after_rl"]) == (0.01, 0.7)
    assert summary["trained_tokens"] == 200 and summary["stale_token_fraction"] == 0.5
    assert summary["mixed_version_rollouts"] == 6 and summary["dropped_rollouts"] == 2
    assert summary["mismatch_kl_mean"] == 0.02 and summary["mismatch_kl_fresh"] == pytest.approx(2e-9)
    assert summary["mismatch_max_fresh"] == 2e-5
    assert summary["trainer_idle_fraction"] == 0.4
    assert summary["sampler_tokens_per_second"] == 500.0 and summary["trainer_tokens_per_second"] == 150.0
    assert summary["recompilations_after_warmup"] == 0
    assert summary["export_dir"] == str(tmp_path / "export")


def test_a_step_taken_again_replaces_itself_and_what_followed(summarize):
    """Steps 1 to 4, a restart from the checkpoint of step 2, and an end after step 3."""
    steps = [rl(1.0, 1), rl(2.0, 2), rl(3.0, 3, tokens__trained=1e6), rl(4.0, 4, tokens__trained=1e6), rl(9.0, 3)]
    summary = summarize(steps)
    assert summary["steps"] == 3 and summary["trained_tokens"] == 300


def test_counters_go_on_over_restarts(summarize):
    rows = [rl(10.0, 1, compile__after_warmup=2, time__wait_s=8.0)]
    rows += [row(2.0, "sampler-0", tokens__generated=500), row(6.0, "sampler-0", tokens__generated=900)]
    rows += [row(10.0, "sampler-0", tokens__generated=400)]  # a new process: 400 more
    rows += [rl(11.0, 2, compile__after_warmup=1)]
    summary = summarize(rows)
    assert summary["sampler_tokens_per_second"] == 100.0
    assert summary["recompilations_after_warmup"] == 3


def test_time_between_two_starts_is_not_counted(summarize):
    rows = [row(0.0, "launch", run__started=1), rl(5.0, 1), row(100.0, "launch", run__started=1), rl(107.0, 2)]
    assert summarize(rows)["wall_seconds"] == 12.0


def test_what_is_no_number_is_null(summarize, tmp_path):
    assert summarize([rl(1.0, 1, mismatch__kl_sum=math.nan)])["mismatch_kl_mean"] is None
    assert "NaN" not in (tmp_path / "summary.json").read_text()
