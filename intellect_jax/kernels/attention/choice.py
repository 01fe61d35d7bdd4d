"""Which way to compute attention: as asked, or the best for platform, length and numbers."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from intellect_jax.errors import UserError
from intellect_jax.kernels.attention import chunked, native, plain, splash
from intellect_jax.kernels.native import usable

log = logging.getLogger(__name__)

_SHORT = 32  # tokens of a row; longer ones are faster in blocks, see benchmarks/results/attention_cpu.json
_PLATFORMS = {"splash": "tpu", "tokamax": "gpu", "native": "cpu"}  # of kernels that run on one alone


def refuse_misfit(name: str, device: jax.Device) -> None:
    """Raises UserError where the kernel asked for cannot run on devices like this one."""
    wanted = _PLATFORMS.get(name, device.platform)
    if wanted != device.platform:
        raise UserError(f"trainer.attention={name}: runs on {wanted}, and the trainer's devices are {device.platform}")
    if name == "tokamax" and not find_spec("tokamax"):
        raise UserError("trainer.attention=tokamax: install tokamax, or set auto or chunked")
    if name == "native" and not usable():
        raise UserError("trainer.attention=native: needs a C++ compiler (the log says more), or set auto or chunked")


def attention(
    name: str,
    device: jax.Device,
    q: Float[Array, "b s h c"],
    k: Float[Array, "b s k c"],
    v: Float[Array, "b s k c"],
    segment_ids: Int[Array, "b s"],
    positions: Int[Array, "b s"],
) -> Float[Array, "b s h c"]:
    """Attention of packed rows in their own order by the kernel ``name``, or for ``auto`` by the best one.

    ``device``: one like those it is compiled for. What padding attends to differs; nothing reads it.
    """
    arguments = (q, k, v, segment_ids, positions)
    match best(device.platform, q.shape[1], q.dtype) if name == "auto" else name:
        case "plain":
            return plain.packed_attention(*arguments)
        case "splash":
            return splash.attention(*arguments)
        case "native":
            return native.attention(*arguments)
        case "tokamax":
            from intellect_jax.kernels.attention import flash  # its package is there on GPUs only

            return flash.attention(*arguments, device)
        case _:
            return chunked.attention(*arguments)


def hops(name: str, device: jax.Device, dtype: jnp.dtype) -> Any:
    """``forward`` and ``backward`` of a set of queries and a set of keys, for a ring: the kernel that has them.

    Splash attention and plain scores have none; the blocks of ``chunked`` stand in.
    """
    if (best(device.platform, 0, dtype) if name == "auto" else name) == "tokamax":
        from intellect_jax.kernels.attention import flash

        return flash.Hops(device)
    return chunked


def best(platform: str, length: int, dtype: jnp.dtype) -> str:
    """On GPUs and TPUs their flash kernels, if they take the numbers; on a CPU ours; else blocks. Plain scores of the
    shortest."""
    if platform == "tpu":
        return "splash"
    if platform == "gpu" and jnp.dtype(dtype).itemsize == 2:
        if find_spec("tokamax"):
            return "tokamax"
        log.warning("tokamax is not installed: attention in plain XLA, which is slow on a GPU")
    if length <= _SHORT:
        return "plain"
    return "native" if platform == "cpu" and usable() else "chunked"
