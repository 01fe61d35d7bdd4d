"""What the device here can do, measured: the rate of dense matrix products, and the memory that was used at most."""

from __future__ import annotations

import resource
import time

import jax
import jax.numpy as jnp

SIDES = {"cpu": 1024, "gpu": 8192, "tpu": 8192}  # of the square matrices: large enough for the device's best rate
SECONDS = 0.5  # of one measurement, about


def matmul_rate(dtype: str) -> float:
    """FLOP/s of square products in ``dtype`` on one device: the best of three measurements."""
    side = SIDES.get(jax.default_backend(), 8192)
    a, b = (jax.random.normal(jax.random.key(i), (side, side), jnp.dtype(dtype)) for i in range(2))
    multiply = jax.jit(jnp.matmul)
    once = _seconds(multiply, a, b, 2) / 2
    times = max(2, round(SECONDS / max(once, 1e-6)))
    return 2 * side**3 * times / min(_seconds(multiply, a, b, times) for _ in range(3))


def _seconds(multiply, a, b, times: int) -> float:
    multiply(a, b).block_until_ready()
    start = time.perf_counter()
    for _ in range(times):
        out = multiply(a, b)
    out.block_until_ready()
    return time.perf_counter() - start


def peak_bytes() -> int:
    """The most memory in use at once so far: of the fullest device, or of this process where devices do not tell."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    known = [stat["peak_bytes_in_use"] for stat in stats if "peak_bytes_in_use" in stat]
    return max(known, default=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
