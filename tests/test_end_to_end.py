"""The whole system as a person starts it: every role a real process, a few steps, then the same run continued."""

import json
import random
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from intellect_jax.bridge.checkpoint import Damaged, verify
from intellect_jax.bridge.huggingface import to_hf
from intellect_jax.bridge.load import load_pretrained
from intellect_jax.monitor.metrics import read_metrics
from intellect_jax.transport.reading import WeightError
from intellect_jax.transport.weights import WeightStore
from intellect_jax.types import Version

ROOT = Path(__file__).parents[1]
KEYS = [
    "run_dir",
    "sampler_backend",
    "steps",
    "wall_seconds",
    "sft_steps",
    "eval_reward_before_rl",
    "eval_reward_after_rl",
    "eval_exact_before_rl",
    "eval_exact_after_rl",
    "trained_tokens",
    "stale_token_fraction",
    "mixed_version_rollouts",
    "dropped_rollouts",
    "mismatch_kl_mean",
    "mismatch_kl_fresh",
    "mismatch_max_fresh",
    "trainer_idle_fraction",
    "sampler_tokens_per_second",
    "trainer_tokens_per_second",
    "recompilations_after_warmup",
    "export_dir",
]


def launch(root, *overrides):
    command = [
        *(sys.executable, "-m", "launch", "--config=configs/debug_cpu.py", f"--config.run.root={root}"),
        *("--config.run.name=tiny", "--config.sft.steps=25", "--config.sft.decay_steps=5", "--config.eval.prompts=12"),
        *("--config.orchestrator.batch_size=16", "--config.orchestrator.group_size=4", *overrides),
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    first = launch(root, "--config.trainer.max_steps=4")
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    return root / "tiny", first


def test_a_run_ends_with_a_summary_a_model_and_the_next_command(finished):
    run_dir, first = finished
    summary = json.loads((run_dir / "summary.json").read_text())
    assert set(KEYS) <= set(summary)
    assert (summary["steps"], summary["sft_steps"], summary["process_deaths"]) == (4, 25, 0)
    assert summary["recompilations_after_warmup"] == 0
    assert summary["mismatch_max_fresh"] <= 1e-4 and summary["mismatch_kl_fresh"] <= 1e-8
    assert "next:" in first.stdout and "export" in first.stdout


def test_the_sampler_generates_while_the_trainer_steps(finished):
    rows = read_metrics(finished[0])
    steps = [(r["time/start"], r["time/end"]) for r in rows if r["role"] == "trainer"]
    rollouts = [
        row
        for step in (2, 3, 4)
        for row in pq.read_table(
            finished[0] / "rollouts" / f"step-{step:06d}.parquet", columns=["started", "finished"]
        ).to_pylist()
    ]  # fmt: skip
    overlap = [r for r in rollouts for start, end in steps if r["started"] < end and r["finished"] > start]
    assert overlap, "no rollout ran during any step"


def test_the_export_is_the_last_published_version(finished):
    policy = load_pretrained(finished[0] / "export")
    store = WeightStore(finished[0] / "weights")
    published = store.read(store.manifest_path(Version(0, 4)))
    for name, tensor in to_hf(policy.params, policy.config, "float32"):
        np.testing.assert_array_equal(tensor, published[name], err_msg=name)


def flips(folder, count, seed):
    """``count`` random places of a folder as (file, offset): half by bytes, half by files, so that small ones count."""
    draw = random.Random(seed)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = [path.stat().st_size for path in files]
    chosen = draw.choices(files, sizes, k=count // 2) + draw.choices(
        [f for f in files if f.stat().st_size], k=count // 2
    )
    return [(path, draw.randrange(path.stat().st_size)) for path in chosen]


@contextmanager
def flipped(path, at, bit):
    """A file with one bit of one byte turned."""
    content = path.read_bytes()
    path.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
    try:
        yield
    finally:
        path.write_bytes(content)


def test_any_damaged_byte_of_the_newest_checkpoint_or_version_is_noticed(finished):
    checkpoint, version = finished[0] / "checkpoints" / "4", finished[0] / "weights" / "v0-4"
    checks = {
        checkpoint: (Damaged, lambda: verify(checkpoint)),
        version: (WeightError, lambda: WeightStore.read(version / "manifest.json")),
    }
    for folder, (error, check) in checks.items():
        check()
        for n, (path, at) in enumerate(flips(folder, 100, seed=0)):
            with flipped(path, at, n % 8), pytest.raises(error):
                check()
        check()


@pytest.mark.slow
def test_the_same_command_continues_the_run_in_a_new_lineage(finished):
    run_dir, _ = finished
    again = launch(run_dir.parent, "--config.trainer.max_steps=6")
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    assert WeightStore(run_dir / "weights").latest() == Version(1, 6)
    rows = [r for r in read_metrics(run_dir) if r["role"] == "trainer"]
    assert [r["step"] for r in rows] == [1, 2, 3, 4, 5, 6], "finished steps are not run again"
    assert sum(r["role"] == "sft" for r in read_metrics(run_dir)) == 25, "nor are supervised ones"
    tasks = [
        row["task_id"]
        for path in sorted((run_dir / "rollouts").glob("step-*.parquet"))
        for row in pq.read_table(path, columns=["task_id"]).to_pylist()
    ]
    assert len(set(tasks)) == 6 * 4, "no task is trained twice"


def test_a_changed_config_is_refused_with_the_difference(finished):
    refused = launch(finished[0].parent, "--config.trainer.optimizer.learning_rate=1e-5")
    assert refused.returncode == 2
    assert "trainer.optimizer.learning_rate" in refused.stderr and "Traceback" not in refused.stderr
    assert len(refused.stderr.strip().splitlines()) <= 2
