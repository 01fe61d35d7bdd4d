"""A run directory like a real one's, with what can happen: deaths, lost steps, a pause, failed rollouts."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

from intellect_jax import config as schema
from intellect_jax.bridge.tokenizer import load_tokenizer, write_character_tokenizer
from intellect_jax.monitor.metrics import FILE
from intellect_jax.orchestrator.records import write_rollouts
from intellect_jax.types import Node, Rollout, Task

BEGIN = 1_700_000_000.0
STEP = 2.5  # seconds
PAUSE = 3600.0  # between the first supervisor's end and the second one's start


def write_run(folder: Path, steps: int, answer: int = 30, group_size: int = 4, turns: int = 1, files: int = 30) -> Path:
    """Writes config, tokenizer and metrics of ``steps`` RL steps after ten supervised ones, and about ``files`` files
    of rollouts.

    A third of the way in a sampler dies; at half, the trainer is killed and takes four steps again; at two thirds the
    whole run is stopped and resumed after PAUSE seconds. Answers are about ``answer`` tokens long.
    """
    folder.mkdir(parents=True)
    config = schema.default_config()
    config.run.name, config.trainer.max_steps = "synthetic", steps
    (folder / "config.json").write_text(json.dumps(schema.to_plain(config)))
    write_character_tokenizer(folder / "tokenizer")
    rows = sorted(_rows(steps), key=lambda row: row["time"])
    (folder / FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer, chance = load_tokenizer(folder / "tokenizer"), random.Random(0)
    for step in sorted({*range(1, steps + 1, max(1, steps // files)), steps}):
        groups = [_group(step, task, answer, group_size, turns, tokenizer, chance) for task in range(3)]
        write_rollouts(folder / "rollouts", f"step-{step:06d}", [rollout for group in groups for rollout in group])
    return folder


def _row(time: float, role: str, step: int | None = None, **values: float) -> dict:
    return {"time": time, "role": role, "step": step} | {name.replace("__", "/"): v for name, v in values.items()}


def _rows(steps: int) -> list[dict]:
    chance = random.Random(1)
    now = BEGIN
    rows = [_row(now, "launch", run__started=1)]
    for step in range(1, 11):
        now += 1.0
        rows.append(_row(now, "sft", step, loss__ce=4.0 / step, grad__norm=1.0, time__wait_s=0.1, time__step_s=0.9,
                         optimizer__learning_rate=1e-3))  # fmt: skip
    rows.append(_row(now, "orchestrator", 0, eval__reward=0.2, eval__exact_match=0.0, eval__version=0, eval__final=0))
    sampler_start, generated, step, lineage = now, 0, 1, 0
    events = {max(2, steps // 3): "sampler", max(4, steps // 2): "trainer", max(6, 2 * steps // 3): "pause"}
    while step <= steps:
        now += STEP
        generated += 3000
        rows += _step_rows(step, now, lineage, steps, chance)
        for second, running in ((0.5, 0), (1.5, 24)):
            load = {"requests__running": running, "requests__waiting": 2}
            rows.append(_row(now - STEP + second, "sampler-0", tokens__generated=generated, **load))
        event = events.pop(step, None)
        step += 1
        if event == "sampler":
            rows.append(
                _row(now, "launch", deaths__sampler_0=1, process__exit_code=-9, process__lived_s=now - sampler_start)
            )
            rows[-1]["deaths/sampler-0"] = rows[-1].pop("deaths/sampler_0")
            generated, now = 0, now + 8.0
        elif event == "trainer":
            rows.append(_row(now, "launch", deaths__trainer=1, process__exit_code=1, process__lived_s=60.0))
            step, lineage, now = step - 4, lineage + 1, now + 12.0
        elif event == "pause":
            rows.append(_row(now, "launch", run__ended=1))
            now += PAUSE
            rows.append(_row(now, "launch", run__started=1))
            generated = 0
    rows.append(
        _row(now, "orchestrator", steps, eval__reward=0.9, eval__exact_match=0.5, eval__version=steps, eval__final=1)
    )
    return [*rows, _row(now + 1.0, "launch", run__ended=1)]


def _step_rows(step: int, now: float, lineage: int, steps: int, chance: random.Random) -> list[dict]:
    reward = 0.2 + 0.7 * step / steps + chance.gauss(0, 0.03)
    lags = {f"staleness__hist_{lag}": count for lag, count in ((0, 100), (1, 300), (2, 600 + step % 50))}
    batch = {"reward__mean": reward, "rollouts__dropped_error": int(step % 40 == 7), "rollouts__seconds": 1.2}
    return [
        _row(now - 2.2, "orchestrator", step, queue__size=0, **batch),
        _row(now, "trainer", step, loss__total=chance.gauss(0, 1e-3), grad__norm=abs(chance.gauss(0.2, 0.05)),
             policy__entropy=0.8 * math.exp(-step / steps), mismatch__kl=0.1, mismatch__kl_sum=100.0,
             mismatch__fresh_count=100, mismatch__fresh_kl_sum=1e-9, staleness__mean=1.5, staleness__max=2, **lags,
             tokens__total=6000, tokens__trained=1000, tokens__stale=900, time__wait_s=0.2, time__step_s=2.2,
             time__publish_s=0.1, time__start=now - 2.0, compile__after_warmup=0, version__lineage=lineage, **batch),
    ]  # fmt: skip


def _group(step: int, task: int, answer: int, group_size: int, turns: int, tokenizer, chance) -> list[Rollout]:
    """Rollouts whose later half a newer version wrote; their texts try to break out of the page."""
    prompt = f"task {task}: </script><b>reverse</b>"
    rollouts = []
    for sample in range(group_size):
        nodes = [Node("user", prompt, tokenizer.encode(f"<|user|>{prompt}<|assistant|>", add_special_tokens=False))]
        for turn in range(turns):
            ids = [chance.randrange(7, 102) for _ in range(answer)] + [tokenizer.eos_token_id]
            logprobs = [-chance.expovariate(2.0) for _ in ids]
            versions = [max(step - 2 + (i > len(ids) // 2), 0) for i in range(len(ids))]
            nodes.append(Node("assistant", tokenizer.decode(ids), ids, len(nodes) - 1, True, logprobs, versions))
            if turn + 1 < turns:
                nodes.append(Node("user", "go on", tokenizer.encode("<|user|>go on<|assistant|>"), len(nodes) - 1))
        rollouts.append(
            Rollout(
                Task(3 * step + task, "reverse_text", "train", task),
                sample,
                lineage=0,
                temperature=1.0,
                nodes=nodes,
                reward=sample / group_size,
                metrics={"exact_match": 0.0},
                advantage=sample / group_size - 0.4,
                finish_reason="stop",
            )
        )
    return rollouts
