"""Token log-probabilities and entropy with gradients: ours, against the same from all logits at once; and memory.

    python benchmarks/logprobs.py [--rounds=10] [--large=2048,32768,256] [--lengths=4096,8192,16384,32768] [--out=FILE]

Times forward and backward pass of both in alternation, at the shape of the demo and at a large one (tokens, vocabulary,
hidden width), with every token a member and with a half of them. Then, each in a process of its own, how much the
resident memory of ours rises above its inputs at each length of the row, at the large vocabulary and width.
The last line is JSON: milliseconds, ratios (above 1: ours is faster), MiB of temporaries and of resident memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from machine import processor

from intellect_jax.kernels.logprobs import member_logprobs, token_logprobs

DEMO = (8, 64, 100, 128)  # rows, tokens of a row, vocabulary, hidden width
MIB = 2**20


def all_logits(hidden, kernel, targets, temperature, members):
    logits = jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
    return tuple(jnp.where(members, x, 0.0) for x in token_logprobs(logits, targets, temperature))


def inputs(rows: int, length: int, vocabulary: int, width: int, share: float) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.standard_normal((rows, length, width), np.float32))
    kernel = jnp.asarray(0.1 * rng.standard_normal((width, vocabulary), np.float32))
    targets = jnp.asarray(rng.integers(0, vocabulary, (rows, length)))
    return hidden, kernel, targets, jnp.ones((rows, length)), jnp.asarray(rng.random((rows, length)) < share)


def compiled(function: Callable[..., Any], arrays: Sequence[jax.Array]) -> Any:
    """A loss of the logprobs with entropy beside it, as the trainer has it, and its gradients."""

    def loss(*arrays):
        logprobs, entropy = function(*arrays)
        return jnp.sum(jnp.sin(logprobs)), jnp.sum(entropy)

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True)).lower(*arrays).compile()


def compare(shape: tuple[int, int, int, int], share: float, rounds: int) -> dict[str, float]:
    arrays = inputs(*shape, share)
    runs = {"ours": compiled(member_logprobs, arrays), "all_logits": compiled(all_logits, arrays)}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run(*arrays))
            if number:  # the first is a warm-up
                seconds[name].append(time.perf_counter() - start)
    ratios = [theirs / ours for ours, theirs in zip(*seconds.values(), strict=True)]
    temporary = {name: run.memory_analysis().temp_size_in_bytes / MIB for name, run in runs.items()}
    return {
        **{f"{name}_ms": round(1e3 * median(each), 3) for name, each in seconds.items()},
        "all_logits_over_ours": round(median(ratios), 3),
        **{f"{name}_temporary_mib": round(size, 2) for name, size in temporary.items()},
    }


def resident(length: int, vocabulary: int, width: int) -> dict[str, float]:
    """MiB of one row: what the compiler plans, and by how much this process grows while it runs (Linux)."""
    arrays = inputs(1, length, vocabulary, width, 1.0)
    run = compiled(member_logprobs, arrays)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    jax.block_until_ready(run(*arrays))
    plan = run.memory_analysis()
    outputs = plan.output_size_in_bytes / MIB
    return {
        "temporary_mib": round(plan.temp_size_in_bytes / MIB, 1),
        "resident_beyond_outputs_mib": round(_status("VmHWM") - before - outputs, 1),
        "all_logits_mib": round(4 * length * vocabulary / MIB, 1),
    }


def _status(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def in_own_process(length: int, vocabulary: int, width: int) -> dict[str, float]:
    command = [sys.executable, __file__, f"--resident={length},{vocabulary},{width}"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=1800)
    return json.loads(done.stdout.splitlines()[-1])


def numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--large", type=numbers, default=(2048, 32768, 256))
    parser.add_argument("--lengths", type=numbers, default=(4096, 8192, 16384, 32768))
    parser.add_argument("--out", type=Path, help="a file for the JSON")
    parser.add_argument("--resident", type=numbers, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.resident:
        print(json.dumps(resident(*arguments.resident)))
        return
    tokens, vocabulary, width = arguments.large
    found: dict[str, Any] = {"device": jax.devices()[0].device_kind, "machine": processor(), "jax": jax.__version__}
    for name, shape, rounds in (("demo", DEMO, 10), ("large", (1, tokens, vocabulary, width), 1)):
        for share in (1.0, 0.5):
            key = f"{name}_{share:.0%}_members"
            found[key] = {"shape": shape, **compare(shape, share, rounds * arguments.rounds)}
            print(key, found[key], flush=True)
    found["memory"] = {}
    for length in arguments.lengths:
        found["memory"][length] = in_own_process(length, vocabulary, width)
        print(f"{length} tokens:", found["memory"][length], flush=True)
    text = json.dumps(found)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
