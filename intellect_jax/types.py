"""The nouns that cross a process border: plain dataclasses, no JAX.

Shapes use: M microbatches, R rows, S tokens of a row, L MoE layers, K experts per token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, order=True)
class Version:
    """A policy version. ``number`` counts optimizer steps; a restored trainer starts a new ``lineage``."""

    lineage: int
    number: int

    def __str__(self) -> str:
        return f"{self.lineage}.{self.number}"

    @classmethod
    def parse(cls, text: str) -> Version:
        lineage, number = text.split(".")
        return cls(int(lineage), int(number))


@dataclass(frozen=True)
class Task:
    """One prompt of an environment. ``task_id`` is its place in the run's seeded stream of tasks."""

    task_id: int
    env: str  # name of the environment
    split: str  # "train" or "eval"
    index: int  # which example of the environment's split


@dataclass
class Node:
    """One piece of a rollout: the tokens that it adds to its parent's history.

    ``logprobs`` (natural log, at the sampling temperature), ``versions`` (policy version numbers) and
    ``routed_experts`` (int16 [tokens, L, K], -1 where unknown) run along ``token_ids``; the first two are empty for
    nodes that the policy did not write.
    """

    role: str  # system, user, assistant or tool
    text: str
    token_ids: list[int]
    parent: int | None = None
    sampled: bool = False
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    routed_experts: np.ndarray | None = None


@dataclass
class Rollout:
    """A tree of nodes, as in verifiers' traces; every root-to-leaf branch is one training sample.

    Errors are data: a failed rollout carries ``error`` and no reward.
    """

    task: Task
    sample_index: int  # which of its group
    lineage: int
    temperature: float
    nodes: list[Node] = field(default_factory=list)
    reward: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    advantage: float = 0.0
    finish_reason: str = ""
    error: str | None = None
    started: float = 0.0  # unix seconds
    finished: float = 0.0

    def branches(self) -> list[list[Node]]:
        """Root-to-leaf paths, in the order of their leaves."""
        inner = {node.parent for node in self.nodes}
        paths = []
        for leaf in (i for i in range(len(self.nodes)) if i not in inner):
            path: list[Node] = []
            at: int | None = leaf
            while at is not None:
                path.append(self.nodes[at])
                at = self.nodes[at].parent
            paths.append(path[::-1])
        return paths

    def versions(self) -> list[int]:
        """Version numbers of all sampled tokens."""
        return [v for node in self.nodes for v in node.versions]


@dataclass
class Sample:
    """One branch as flat per-token arrays of equal length T; what packing consumes.

    Entry t of every stream speaks of predicting ``tokens[t]`` from ``tokens[:t]``.
    """

    tokens: np.ndarray  # int32 [T]
    loss_mask: np.ndarray  # bool [T]: member tokens of the loss
    advantages: np.ndarray  # float32 [T]
    sampler_logprobs: np.ndarray  # float32 [T], 0 where not sampled
    versions: np.ndarray  # int32 [T], -1 where not sampled
    temperature: float = 1.0
    loss_id: int = 0
    rl_weight: float = 1.0
    ce_weight: float = 0.0
    ref_kl_weight: float = 0.0
    ref_logprobs: np.ndarray | None = None  # float32 [T]
    routed_experts: np.ndarray | None = None  # int16 [T, L, K], -1: the trainer's own choice


# Per-token streams of a packed batch: name, dtype, value of padding.
STREAMS: tuple[tuple[str, Any, float], ...] = (
    ("tokens", np.int32, 0),
    ("positions", np.int32, 0),
    ("segment_ids", np.int32, 0),
    ("temperature", np.float32, 1.0),
    ("loss_id", np.int32, 0),
    ("loss_mask", np.bool_, False),
    ("advantages", np.float32, 0.0),
    ("sampler_logprobs", np.float32, 0.0),
    ("ref_logprobs", np.float32, 0.0),
    ("rl_weight", np.float32, 0.0),
    ("ce_weight", np.float32, 0.0),
    ("ref_kl_weight", np.float32, 0.0),
    ("staleness", np.int32, -1),
)


@dataclass
class PackedBatch:
    """The arrays of one trainer step, each [M, R, S]; ``routed_experts`` is [M, R, S, L, K] where present.

    ``segment_ids`` is 0 on padding and counts samples from 1 in each row. ``staleness`` is (step - 1) minus the
    version that wrote the token, -1 where the policy wrote nothing.
    """

    step: int
    arrays: dict[str, np.ndarray]
    info: dict[str, Any] = field(default_factory=dict)  # what the orchestrator counted; JSON values

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.arrays["tokens"].shape  # type: ignore[return-value]


@dataclass(frozen=True)
class Piece:
    """One contiguous part of a published tensor: where it lies and the hash of its bytes."""

    slice: list[list[int]]  # [start, stop] per dimension of the global tensor
    file: str
    start: int  # byte range within the file
    stop: int
    hash: str  # xxh3_64 of the bytes, 16 hex digits


@dataclass(frozen=True)
class FileEntry:
    """One file of a version. What pieces do not cover is its header."""

    size: int  # bytes
    header: int  # bytes before the first piece
    hash: str  # xxh3_64 of the header


@dataclass(frozen=True)
class TensorEntry:
    dtype: str  # safetensors' name: BF16, F32
    shape: list[int]
    pieces: list[Piece]


@dataclass
class Manifest:
    """What one published version consists of. ``tensors`` is keyed by Hugging Face names, ``files`` by file names."""

    version: Version
    kind: str  # full | delta
    files: dict[str, FileEntry]
    tensors: dict[str, TensorEntry]
    base: Version | None = None  # of a delta

    def to_json(self) -> dict[str, Any]:
        """Plain values; ``dataclasses.asdict`` would copy each of them, 20 ms for a small model."""
        tensors = {n: {**vars(t), "pieces": [vars(p) for p in t.pieces]} for n, t in self.tensors.items()}
        files = {name: vars(entry) for name, entry in self.files.items()}
        base = self.base and vars(self.base)
        return {"version": vars(self.version), "kind": self.kind, "base": base, "files": files, "tensors": tensors}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Manifest:
        tensors = {
            name: TensorEntry(t["dtype"], t["shape"], [Piece(**p) for p in t["pieces"]])
            for name, t in data["tensors"].items()
        }
        base = Version(**data["base"]) if data.get("base") else None
        files = {name: FileEntry(**entry) for name, entry in data["files"].items()}
        return cls(Version(**data["version"]), data["kind"], files, tensors, base)
