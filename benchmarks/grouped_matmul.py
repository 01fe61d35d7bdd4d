"""The grouped matmul against a dense batched matmul of as many FLOPs: forward, and both gradients.

    python benchmarks/grouped_matmul.py [--shapes=all] [--rounds=20] [--out=FILE]

Rows are spread over the groups evenly, as a random router spreads them, or skewed: by a power law, with half of the
groups empty, with nearly all rows in one group. Every round runs the dense matmul (as many groups, all of equal size)
and each routing in turn; ratios are medians over the rounds of time over the dense time of the same round, so that what
else the machine does cancels. FLOP rates count the rows really filled. "128 over 8 groups" compares equal FLOPs.
On a GPU or TPU also GLM-4.5-Air's experts in bf16. The last line is JSON; --out writes it to a file too.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np
from machine import processor

from intellect_jax.kernels.grouped_matmul import grouped_matmul
from intellect_jax.kernels.grouped_matmul.tuning import version


@dataclass(frozen=True)
class Shape:
    rows: int
    inner: int
    outer: int
    groups: int
    dtype: str = "float32"

    @property
    def flops(self) -> int:
        """Of a forward pass and both gradients."""
        return 3 * 2 * self.rows * self.inner * self.outer

    def __str__(self) -> str:
        return f"{self.rows}x{self.inner}x{self.outer} {self.groups} groups {self.dtype}"


SHAPES = {
    "must": tuple(Shape(8192, 256, 128, groups) for groups in (8, 32, 128)),
    "bf16": (Shape(8192, 256, 128, 32, "bfloat16"),),
    "toy": tuple(Shape(96, 16, 8, groups) for groups in (2, 8)),
    "glm": (Shape(65536, 4096, 1408, 128, "bfloat16"), Shape(65536, 1408, 4096, 128, "bfloat16")),
}


def routings(shape: Shape) -> dict[str, np.ndarray]:
    """Rows of each group, by the name of the distribution."""
    rng = np.random.default_rng(0)
    each = np.arange(shape.groups)

    def drawn(weight: np.ndarray) -> np.ndarray:
        return np.bincount(rng.choice(shape.groups, shape.rows, p=weight / weight.sum()), minlength=shape.groups)

    one = np.ones(shape.groups, int)
    one[shape.groups // 2] += shape.rows - shape.groups
    return {
        "even": np.full(shape.groups, shape.rows // shape.groups),
        "random": drawn(np.ones(shape.groups)),
        "power law": drawn(1 / (1 + each)),
        "half empty": drawn(each % 2 == 0),
        "nearly all in one": one,
    }


def step(matmul: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, ...]]:
    """A compiled forward pass and both gradients, of x, w, the output's gradient and whatever else."""

    def run(x, w, grad, *more):
        y, gradients = jax.vjp(lambda x, w: matmul(x, w, *more), x, w)
        return y, *gradients(grad)

    return jax.jit(run)


def dense(x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.einsum("emd,edf->emf", x.reshape(w.shape[0], -1, x.shape[1]), w).reshape(x.shape[0], -1)


def made_up(shape: Shape) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rows, matrices and a gradient of the output."""
    sizes = ((shape.rows, shape.inner), (shape.groups, shape.inner, shape.outer), (shape.rows, shape.outer))
    keys = jax.random.split(jax.random.key(0), 3)
    x, w, grad = (jax.random.normal(k, size, shape.dtype) for k, size in zip(keys, sizes, strict=True))
    return x, w, grad


def alternate(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each function, once a round in turn, after a call each that compiles."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for measured in [False] + [True] * rounds:
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            if measured:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def ratio(times: list[float], base: list[float]) -> float:
    return round(median(a / b for a, b in zip(times, base, strict=True)), 3)


def against_dense(shape: Shape, rounds: int) -> Iterator[dict]:
    """A row of figures for the dense matmul and for each routing."""
    arguments, ours, plain = made_up(shape), step(grouped_matmul), step(dense)
    functions: dict[str, Callable[[], object]] = {"dense": partial(plain, *arguments)}
    for name, sizes in routings(shape).items():
        functions[name] = partial(ours, *arguments, jnp.asarray(sizes, jnp.int32))
    times = alternate(functions, rounds)
    for name, each in times.items():
        rate = shape.flops / median(each) / 1e9
        figures = {"ms": round(median(each), 3), "tflops": round(rate, 4), "over_dense": ratio(each, times["dense"])}
        yield {**asdict(shape), "routing": name, **figures}


def over_groups(few: Shape, many: Shape, rounds: int) -> dict[str, float]:
    """Time with many groups over time with few, at equal FLOPs."""
    ours, functions = step(grouped_matmul), {}
    for shape in (few, many):
        for name in ("even", "random"):
            sizes = jnp.asarray(routings(shape)[name], jnp.int32)
            functions[f"{name} {shape.groups}"] = partial(ours, *made_up(shape), sizes)
    times = alternate(functions, rounds)
    return {name: ratio(times[f"{name} {many.groups}"], times[f"{name} {few.groups}"]) for name in ("even", "random")}


def machine() -> dict[str, str]:
    device = processor() if jax.default_backend() == "cpu" else jax.devices()[0].device_kind
    versions = {name: version(name) for name in ("jax", "jaxlib", "tokamax")}
    return {"device": device, "python": platform.python_version(), **versions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", choices=("all", *SHAPES), default="all")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    names = [options.shapes] if options.shapes != "all" else ["must", "bf16"]
    if options.shapes == "all" and jax.default_backend() != "cpu":
        names.append("glm")
    rows = []
    for shape in (shape for name in names for shape in SHAPES[name]):
        print(shape, flush=True)
        for row in against_dense(shape, options.rounds):
            rows.append(row)
            print("  {routing:18} {ms:9.2f} ms  {tflops:8.3f} TFLOP/s  {over_dense:5.2f} x dense".format(**row))
    result = {**machine(), "rounds": options.rounds, "rows": rows}
    if names[0] in ("must", "toy"):
        few, *_, many = SHAPES[names[0]]
        result[f"{many.groups}_over_{few.groups}_groups"] = over_groups(few, many, options.rounds)
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
