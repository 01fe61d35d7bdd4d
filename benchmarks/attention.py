"""Attention with gradients over packed rows: memory by row length, and time against plain scores on short rows.

    python benchmarks/attention.py [--out=benchmarks/results/attention_cpu.json]
    python benchmarks/attention.py --kernels=tokamax,chunked --heads=96 --kv_heads=8 --width=128 --dtype=bfloat16 \
        --lengths=4096,16384,65536 --short= --rounds=10         # GLM-4.5-Air on a GPU

Each length runs in a process of its own, for its peak memory: one segment as long as the row, the dearest case, and
then segments of 1024 tokens, whose unseen blocks cost nothing. Temporary bytes are what the compiler reserves; resident
bytes what the process grew by while it ran: kernels in C++ have memory that no compiler knows of. TFLOP/s count the
scores that are seen, forward and backward, without recomputation. Short rows alternate between plain scores and the
first kernel, and the median of the pairs' ratios is printed. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from machine import processor

from intellect_jax.kernels.attention.choice import attention

SHORT_TOKENS = 4096  # in all rows of a short case
SEGMENT = 1024


def packed(rows: int, length: int, segment: int, args: argparse.Namespace) -> tuple[jax.Array, ...]:
    """q, k, v, segment ids and positions of rows that segments of one length fill."""
    keys = jax.random.split(jax.random.key(0), 3)
    heads = (args.heads, args.kv_heads, args.kv_heads)
    made = [
        jax.random.normal(key, (rows, length, n, args.width), args.dtype)
        for key, n in zip(keys, heads, strict=True)
    ]  # fmt: skip
    index = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
    return (*made, jnp.asarray(1 + index // segment), jnp.asarray(index % segment))


def with_gradients(kernel: str) -> Callable[..., Any]:
    run = partial(attention, kernel, jax.devices()[0])

    def loss(q, k, v, segment_ids, positions):
        out = run(q, k, v, segment_ids, positions)
        return jnp.sum(out.astype(jnp.float32) * jnp.cos(jnp.arange(out.shape[-1])))

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))


def seconds(function: Callable[..., Any], arrays: tuple[jax.Array, ...]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function(*arrays))
    return time.perf_counter() - start


def seen_flops(length: int, segment: int, args: argparse.Namespace) -> float:
    """Two products forward and four backward (the gradients of each) over the pairs of tokens that see each other."""
    whole, rest = divmod(length, segment)
    pairs = whole * segment * (segment + 1) / 2 + rest * (rest + 1) / 2
    return 6 * 2 * pairs * args.heads * args.width


def long_row(kernel: str, length: int, segment: int, args: argparse.Namespace) -> dict[str, Any]:
    arrays = jax.block_until_ready(packed(1, length, segment, args))
    compiled = with_gradients(kernel).lower(*arrays).compile()
    before = resident()
    taken = median(seconds(compiled, arrays) for _ in range(args.rounds))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    analysis = compiled.memory_analysis()
    return {
        "kernel": kernel,
        "device": jax.devices()[0].device_kind,
        "tokens": length,
        "segment": segment,
        "temporary_bytes": analysis.temp_size_in_bytes,
        "resident_bytes": max(peak - before, 0),
        "ms": round(taken * 1e3, 1),
        "tflops": round(seen_flops(length, segment, args) / taken / 1e12, 4),
    }


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def short_rows(length: int, args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of plain scores and of the first kernel, and the median ratio of alternating pairs."""
    arrays = packed(SHORT_TOKENS // length, length, min(length, 128), args)
    kernel = args.kernels.split(",")[0]
    functions = [with_gradients(name) for name in ("plain", kernel)]
    for function in functions:
        seconds(function, arrays)
    pairs = [[seconds(function, arrays) for function in functions] for _ in range(2 * args.rounds + 1)]
    plain, ours = (median(times) * 1e3 for times in zip(*pairs, strict=True))
    ratio = median(a / b for a, b in pairs)
    return {
        "tokens": length,
        "plain_ms": round(plain, 1),
        "kernel": kernel,
        "kernel_ms": round(ours, 1),
        "speedup": round(ratio, 2),
    }


def in_a_process(argv: list[str], case: str) -> dict[str, Any]:
    command = [sys.executable, __file__, *argv, f"--case={case}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    figures = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(figures), flush=True)
    return figures


def growth(rows: list[dict[str, Any]], name: str) -> float | None:
    """Bytes a token of the longest row over those of the shortest: 1 is linear."""
    first, last = rows[0], rows[-1]
    return round(last[name] / first[name] / (last["tokens"] / first["tokens"]), 3) if first[name] else None


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", default="native,chunked")
    parser.add_argument("--lengths", default="4096,8192,16384,32768")
    parser.add_argument("--short", default="64,128,256,512,1024")
    for name, default in (("heads", 8), ("kv_heads", 2), ("width", 32), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.case:
        kernel, length, segment = args.case.split(",")
        compute = (
            short_rows(int(length), args) if kernel == "short" else long_row(kernel, int(length), int(segment), args)
        )
        print(json.dumps(compute))
        return
    lengths = [int(n) for n in args.lengths.split(",") if n]
    figures: dict[str, Any] = {
        "jax": jax.__version__,
        "machine": processor(),
        "shape": {name: getattr(args, name) for name in ("heads", "kv_heads", "width", "dtype")},
        "short": [in_a_process(argv, f"short,{n},0") for n in args.short.split(",") if n],
    }
    for kernel in args.kernels.split(","):
        rows = [in_a_process(argv, f"{kernel},{n},{n}") for n in lengths]
        packs = [in_a_process(argv, f"{kernel},{n},{SEGMENT}") for n in lengths]
        grown = {name: growth(rows, name) for name in ("temporary_bytes", "resident_bytes")}
        figures[kernel] = {"one_segment": rows, "packed": packs, "growth_over_linear": grown}
    if args.out:
        args.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1:])
