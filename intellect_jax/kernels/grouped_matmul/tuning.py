"""Which kernel is the fastest at a shape: measured once on the device, then known from a file.

The file, ~/.cache/intellect_jax/grouped_matmul.json (XDG_CACHE_HOME moves it), maps device, versions, shapes and dtype
to the name of a kernel and what each of them took.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array

from intellect_jax.files import cache_folder

log = logging.getLogger(__name__)

Kernel = Callable[[Array, Array, Array], Array]
_PLATFORMS = {"cuda": "gpu", "tpu": "tpu"}  # what jax.Device.platform says
_ROUNDS = 5
_chosen: dict[str, str] = {}


def fastest(kind: str, platform: str, kernels: dict[str, Kernel], left: Array, right: Array, sizes: Array) -> Kernel:
    """The kernel that is fastest with arguments of these shapes and dtypes, with rows spread evenly over the groups.

    The first where there is nothing to measure on, as when compiling ahead of time. May be called while tracing: in all
    processes then, of which the first one measures.
    """
    if len(kernels) == 1 or jax.default_backend() != _PLATFORMS.get(platform):
        return next(iter(kernels.values()))
    key = _key(kind, left, right, sizes)
    if key not in _chosen:
        shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (left, right, sizes)]
        with ThreadPoolExecutor(1) as outside:  # a thread of its own traces nothing, on no mesh: it can compute
            _chosen[key] = outside.submit(_choose, key, kind, kernels, *shapes).result()
    return kernels[_chosen[key]]


def _choose(key: str, kind: str, kernels: dict[str, Kernel], *shapes: jax.ShapeDtypeStruct) -> str:
    names = list(kernels)
    found = names[0]
    if jax.process_index() == 0:
        found = _read().get(key, {}).get("kernel", "")
        if found not in names:
            with jax.transfer_guard("allow"):
                found = _measured(key, kind, kernels, *shapes)
    if jax.process_count() > 1:  # processes that compiled different programs could wait for each other forever
        found = names[int(multihost_utils.broadcast_one_to_all(np.int32(names.index(found))))]
    return found


def _measured(
    key: str,
    kind: str,
    kernels: dict[str, Kernel],
    left: jax.ShapeDtypeStruct,
    right: jax.ShapeDtypeStruct,
    sizes: jax.ShapeDtypeStruct,
) -> str:
    group = np.random.default_rng(0).integers(0, sizes.size, left.shape[0])
    rows = np.bincount(group, minlength=sizes.size)
    arguments = (
        jax.random.normal(jax.random.key(0), left.shape, left.dtype),
        jax.random.normal(jax.random.key(1), right.shape, right.dtype),
        jnp.asarray(rows, jnp.int32),
    )
    times = {}
    for name, kernel in kernels.items():
        try:
            compiled = jax.jit(kernel)
            if _is_wrong(kind, compiled(*arguments), *arguments[:2], rows):
                log.warning("grouped matmul %s: %s computes something else", key, name)
                continue
            times[name] = milliseconds(compiled, *arguments)
        except Exception as error:  # a kernel that cannot do a shape says so by exceptions of many kinds
            log.info("grouped matmul %s: %s cannot: %s", key, name, str(error).splitlines()[:1])
    best = min(times, key=times.__getitem__, default=next(iter(kernels)))
    log.info("grouped matmul %s: %s of %s ms", key, best, {name: round(value, 3) for name, value in times.items()})
    _write({**_read(), key: {"kernel": best, "milliseconds": times}})
    return best


def _is_wrong(kind: str, out: Array, left: Array, right: Array, rows: np.ndarray) -> bool:
    """Whether the first, a middle or the last group's part of ``out`` is not what one matmul gives."""
    ends = np.cumsum(rows)
    for group in {0, rows.size // 2, rows.size - 1}:
        own = slice(int(ends[group] - rows[group]), int(ends[group]))
        if kind == "products":
            got, expected = out[group], left[own].T @ right[own]
        else:
            got, expected = out[own], left[own] @ (right[group].T if kind == "rows_transposed" else right[group])
        error = jnp.linalg.norm((got - expected).astype(jnp.float32))
        if not error <= 0.02 * jnp.linalg.norm(expected.astype(jnp.float32)):
            return True
    return False


def milliseconds(function: Callable[..., Array], *arguments: Array) -> float:
    """Median time of a call, after one that compiles."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(1e3 * (time.perf_counter() - start))
    return median(times)


def _key(kind: str, left: Array, right: Array, sizes: Array) -> str:
    packages = {"jax": jax.__version__, "tokamax": version("tokamax")}
    device = jax.local_devices()[0].device_kind
    shapes = f"{left.shape} {right.shape} {sizes.size} {left.dtype}"
    return " | ".join([device, *(f"{name} {version}" for name, version in packages.items()), kind, shapes])


def version(package: str) -> str:
    """Of an installed package; "none" without it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _file() -> Path:
    return cache_folder() / "grouped_matmul.json"


def _read() -> dict[str, dict]:
    try:
        return json.loads(_file().read_text())
    except (OSError, ValueError):
        return {}


def _write(choices: dict[str, dict]) -> None:
    file = _file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(choices, indent=1))
        part.replace(file)
    except OSError as error:  # then the next run measures again
        log.warning("cannot write %s: %s", file, error)
