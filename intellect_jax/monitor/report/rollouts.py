"""What the rollout reader shows: a few whole groups of early, middle, late, best and worst steps, token by token."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from intellect_jax.bridge.tokenizer import load_tokenizer

CANDIDATES = 24  # steps among which best and worst are looked for
GROUPS = 3  # of each kind
SIDE_BY_SIDE = 16  # rollouts of a group
TOKENS = 600  # shown of a prompt or of a rollout's own turns; the middle of what is longer is left out
KINDS = ("early", "middle", "late", "best", "worst")


def reader_data(run_dir: Path) -> dict[str, Any]:
    """``kinds`` (kind -> groups), ``texts`` (token strings that the groups point to) and which of them are ``special``.

    A token list is ``[text numbers]``; log-probabilities are in thousandths; versions are runs ``[version, length]``.
    """
    files = sorted((run_dir / "rollouts").glob("step-*.parquet"))
    if not files:
        return {"kinds": {}, "texts": [], "special": []}
    table = _Texts(load_tokenizer(run_dir / "tokenizer"))
    read: dict[Path, list[dict[str, Any]]] = {}
    kinds = {}
    for kind, places in _chosen(files).items():
        groups = []
        for path, task in places:
            if path not in read:
                read[path] = pq.read_table(path).to_pylist()
            rollouts = [rollout for rollout in read[path] if rollout["task_id"] == task]
            groups.append(_group(int(path.stem.rpartition("-")[2]), rollouts, table))
        kinds[kind] = groups
    return {"kinds": kinds, "texts": table.texts, "special": table.special}


class _Texts:
    """Numbers the strings of the token ids that were asked for."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._special_ids = set(tokenizer.all_special_ids)
        self._numbers: dict[int, int] = {}
        self.texts: list[str] = []
        self.special: list[int] = []

    def numbers(self, token_ids: list[int]) -> list[int]:
        return [self._number(token) for token in token_ids]

    def _number(self, token: int) -> int:
        if token not in self._numbers:
            self._numbers[token] = len(self.texts)
            if token in self._special_ids:
                self.special.append(len(self.texts))
            self.texts.append(self._text(token))
        return self._numbers[token]

    def _text(self, token: int) -> str:
        """Of the second of two equal tokens, since some tokenizers strip the space before the first one of a text."""
        one, two = ([token], [token, token])
        return self._decode(two)[len(self._decode(one)) :]

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _chosen(files: list[Path]) -> dict[str, list[tuple[Path, int]]]:
    """Kind -> (file, task id) of its groups. Early, middle and late hold their step's best, median and worst group."""
    candidates = [files[i] for i in evenly(len(files), CANDIDATES)]
    named = {"early": files[0], "middle": files[len(files) // 2], "late": files[-1]}
    means = {path: _mean_rewards(path) for path in {*candidates, *named.values()}}
    everywhere = sorted(
        (mean, path, task) for path in candidates for task, mean in means[path].items() if mean is not None
    )
    chosen = {}
    for kind, path in named.items():
        ranked = sorted(means[path], key=lambda task: (means[path][task] or 0.0, task))
        chosen[kind] = [(path, ranked[i]) for i in reversed(evenly(len(ranked), GROUPS))]
    chosen["best"] = [(path, task) for _, path, task in everywhere[::-1][:GROUPS]]
    chosen["worst"] = [(path, task) for _, path, task in everywhere[:GROUPS]]
    return chosen


def _mean_rewards(path: Path) -> dict[int, float | None]:
    """Task id -> mean reward of its rollouts; None where all failed."""
    columns = pq.read_table(path, columns=["task_id", "reward"]).to_pydict()
    rewards: dict[int, list[float]] = {}
    for task, reward in zip(columns["task_id"], columns["reward"], strict=True):
        rewards.setdefault(task, []).extend([] if reward is None else [reward])
    return {task: sum(values) / len(values) if values else None for task, values in rewards.items()}


def evenly(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` of the indices below ``count``, evenly spaced, the first and the last among them."""
    if count <= wanted:
        return list(range(count))
    return [round(i * (count - 1) / (wanted - 1)) for i in range(wanted)]


def _group(step: int, rollouts: list[dict[str, Any]], table: _Texts) -> dict[str, Any]:
    """One group: its prompt once, then its rollouts, those with the highest reward first."""
    ordered = sorted(rollouts, key=lambda r: (-(r["reward"] or 0.0), r["sample_index"]))
    prompt = _common_prompt(rollouts)
    return {
        "step": step,
        "task": rollouts[0]["task_id"],
        "env": rollouts[0]["env"],
        "size": len(rollouts),
        "prompt": _nodes(rollouts[0]["nodes"][:prompt], table),
        "rollouts": [_rollout(ordered[i], prompt, table) for i in evenly(len(ordered), SIDE_BY_SIDE)],
    }


def _common_prompt(rollouts: list[dict[str, Any]]) -> int:
    """How many leading nodes nobody sampled and all rollouts share."""
    count = 0
    for nodes in zip(*(r["nodes"] for r in rollouts), strict=False):
        if any(node["sampled"] or node["token_ids"] != nodes[0]["token_ids"] for node in nodes):
            break
        count += 1
    return count


def _rollout(rollout: dict[str, Any], prompt: int, table: _Texts) -> dict[str, Any]:
    return {
        "sample": rollout["sample_index"],
        "reward": _short(rollout["reward"]),
        "advantage": _short(rollout["advantage"]),
        "metrics": {name: _short(value) for name, value in json.loads(rollout["metrics"]).items()},
        "finish": rollout["finish_reason"],
        "error": (rollout["error"] or "")[:500],
        "seconds": round(rollout["finished"] - rollout["started"], 2),
        "tokens": sum(len(node["token_ids"]) for node in rollout["nodes"] if node["sampled"]),
        "nodes": _nodes(rollout["nodes"][prompt:], table, prompt),
    }


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _nodes(nodes: list[dict[str, Any]], table: _Texts, offset: int = 0) -> list[dict[str, Any]]:
    """The nodes with at most TOKENS tokens in all, the first half and the last.

    ``offset`` is the first node's index in its rollout; ``cut`` says how many tokens are missing before a node.
    """
    total = sum(len(node["token_ids"]) for node in nodes)
    start, stop = (TOKENS // 2, total - TOKENS // 2) if total > TOKENS else (total, total)  # what is left out
    shown, at = [], 0
    for index, node in enumerate(nodes, start=offset):
        length = len(node["token_ids"])
        head = slice(0, min(max(start - at, 0), length))
        tail = slice(min(max(stop - at, head.stop), length), length)
        fork = node["parent"] if node["parent"] != index - 1 else None  # -1: a branch of its own
        if head.stop or not length:
            shown.append(_node(node, head, fork, 0, table))
        if tail.start < length:
            shown.append(_node(node, tail, fork, stop - start if at + tail.start == stop else 0, table))
        at += length
    return shown


def _node(node: dict[str, Any], part: slice, fork: int | None, cut: int, table: _Texts) -> dict[str, Any]:
    return {
        "role": node["role"],
        "sampled": node["sampled"],
        "fork": fork,
        "cut": cut,
        "tokens": table.numbers(node["token_ids"][part]),
        "logprobs": [round(1000 * value) for value in node["logprobs"][part]],
        "versions": [[version, len(list(run))] for version, run in groupby(node["versions"][part])],
    }
