"""Rollouts on disk: one Parquet file a step, for people and for the report."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from intellect_jax.monitor.room import wait_for_room
from intellect_jax.types import Rollout


def write_rollouts(folder: Path, name: str, rollouts: list[Rollout]) -> Path:
    """Writes ``folder/name.parquet``, by rename; one row a rollout, nested lists per node."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.parquet"
    work = folder / f".{name}.parquet.tmp"
    wait_for_room(folder, 0, name)
    pq.write_table(pa.Table.from_pylist([_row(r) for r in rollouts]), work)
    os.replace(work, path)
    return path


def _row(rollout: Rollout) -> dict:
    return {
        "task_id": rollout.task.task_id,
        "env": rollout.task.env,
        "split": rollout.task.split,
        "index": rollout.task.index,
        "sample_index": rollout.sample_index,
        "lineage": rollout.lineage,
        "reward": rollout.reward,
        "advantage": rollout.advantage,
        "metrics": json.dumps(rollout.metrics),
        "finish_reason": rollout.finish_reason,
        "error": rollout.error,
        "started": rollout.started,
        "finished": rollout.finished,
        "nodes": [
            {
                "role": node.role,
                "text": node.text,
                "parent": -1 if node.parent is None else node.parent,
                "sampled": node.sampled,
                "token_ids": node.token_ids,
                "logprobs": node.logprobs,
                "versions": node.versions,
            }
            for node in rollout.nodes
        ],
    }
