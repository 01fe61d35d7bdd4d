"""Log-probabilities with gradients, computed by the kernels for the platform that the program is compiled for.

Shape suffixes: B batch, S sequence, D embed, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jaxtyping import Array, Bool, Float, Int

from intellect_jax.kernels.logprobs import chunked, native
from intellect_jax.kernels.logprobs.plain import PerToken
from intellect_jax.kernels.native import usable


def differentiable(forward: Callable[..., Any], backward: Callable[..., Any]) -> Callable[..., Any]:
    """:func:`member_logprobs` out of a ``forward_pass`` and a ``backward_pass``: chunked.py, parallel/logprobs.py."""

    @jax.custom_vjp
    def logprobs(*inputs):
        return forward(*inputs)[:2]

    def save(*inputs):
        logprobs, entropy, logsumexp = forward(*inputs)
        return (logprobs, entropy), (*inputs, entropy, logsumexp)

    def pull_back(saved, grads):
        return (*backward(*saved, *grads), None, None, None)

    logprobs.defvjp(save, pull_back)
    return logprobs


def _by_platform(name: str, *inputs: Array) -> Any:
    in_chunks = getattr(chunked, name)
    if not usable():
        return in_chunks(*inputs)
    return jax.lax.platform_dependent(*inputs, cpu=getattr(native, name), default=in_chunks)


_on_one_device = differentiable(partial(_by_platform, "forward_pass"), partial(_by_platform, "backward_pass"))


def member_logprobs(
    hidden: Float[Array, "b s d"],
    kernel: Float[Array, "d v"],
    targets: Int[Array, "b s"],
    temperature: PerToken,
    members: Bool[Array, "b s"],
) -> tuple[PerToken, PerToken]:
    """:func:`token_logprobs` of float32 ``hidden @ kernel`` where ``members`` is set, 0 elsewhere.

    The kernel is cast to the hidden states' dtype here, so that a float32 master's gradient is never rounded to it. No
    array of tokens times vocabulary exists, nor in the backward pass; tokens that are no members cost nothing. Both
    outputs have gradients to hidden states and kernel; the temperature, the sampler's, has none.
    """
    return _on_one_device(hidden, kernel, targets, temperature, members)
