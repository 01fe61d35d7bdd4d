"""What fills a device's memory during a step, by kind."""

from __future__ import annotations

from launch.plan.compile import Compiled
from launch.plan.targets import USABLE, Target

KINDS = ("parameters", "optimizer", "published", "gradients", "activations", "temporaries", "batch", "code")


def by_kind(compiled: Compiled) -> dict[str, float]:
    """Bytes, from the compiler's own account of the program.

    It knows arguments and temporaries; of the latter, gradients are as large as what trains and activations what loops
    keep for later loops. The rest is what comes and goes: recomputed layers, gathered weights, logits.
    """
    state, program = compiled.state, compiled.program
    if not program:
        return {kind: state.get(kind, 0.0) for kind in KINDS}
    spare = program["temporaries"] + max(program["outputs"] - program["aliased"], 0.0)
    gradients = min(state["gradients"], spare)
    activations = min(compiled.kept, spare - gradients)
    return {
        "parameters": state["parameters"],
        "optimizer": state["optimizer"],
        "published": state.get("published", 0.0),  # no argument of the step, but there all the time
        "gradients": gradients,
        "activations": activations,
        "temporaries": spare - gradients - activations,
        "batch": program["arguments"] - state["parameters"] - state["optimizer"],
        "code": program["code"],
    }


def fits(target: Target, kinds: dict[str, float]) -> bool:
    return sum(kinds.values()) <= USABLE * target.memory
