"""Every section, in the order in which they are listed and printed."""

from __future__ import annotations

from collections.abc import Iterator

from intellect_jax.config.checks import at_least, environments
from intellect_jax.config.key import Key, Section
from intellect_jax.config.keys import devices, learning, policy, rollouts, starting, versions, watching

SCHEMA: Section = {
    "seed": Key(0, "seed of every random stream of the run", at_least(0)),
    "run": {
        "name": Key("", "run directory's name; empty: <config>-seed<seed>"),
        "root": Key("runs", "folder that holds run directories"),
    },
    "model": policy.MODEL,
    "lora": policy.LORA,
    "tokenizer": policy.TOKENIZER,
    "envs": Key((), "environments: a tuple of config.env(name, ratio=…, **arguments)", environments),
    "algorithm": learning.ALGORITHM,
    "sft": learning.SFT,
    "trainer": learning.TRAINER,
    "parallel": devices.PARALLEL,
    "distributed": devices.DISTRIBUTED,
    "orchestrator": rollouts.ORCHESTRATOR,
    "eval": rollouts.EVAL,
    "environments": rollouts.ENVIRONMENTS,
    "sampler": rollouts.SAMPLER,
    "weights": versions.WEIGHTS,
    "checkpoint": versions.CHECKPOINT,
    "export": versions.EXPORT,
    "guard": watching.GUARD,
    "plan": watching.PLAN,
    "monitor": watching.MONITOR,
    "bench": watching.BENCH,
    "launch": starting.LAUNCH,
}


def walk(schema: Section = SCHEMA, prefix: str = "") -> Iterator[tuple[str, Key]]:
    """Yields (dotted name, Key) for every key, in order."""
    for name, node in schema.items():
        if isinstance(node, Key):
            yield prefix + name, node
        else:
            yield from walk(node, f"{prefix}{name}.")
