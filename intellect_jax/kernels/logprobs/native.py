"""Log-probabilities of given tokens, and their gradients, on a CPU by the kernels of native/logprobs.h, in float32.

Shape suffixes: B batch, S sequence, D embed, V vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from intellect_jax.kernels.native import call

PerToken = Float[Array, "b s"]


def forward_pass(
    hidden: Float[Array, "b s d"],
    kernel: Float[Array, "d v"],
    targets: Int[Array, "b s"],
    temperature: PerToken,
    members: Bool[Array, "b s"],
) -> tuple[PerToken, PerToken, PerToken]:
    """Logprobs, entropy and logsumexp(logits / temperature), 0 outside members; see ``logprobs.forward_pass``."""
    out = (jax.ShapeDtypeStruct(targets.shape, jnp.float32),) * 3
    return call("Logprobs", out, *_inputs(hidden, kernel, targets, temperature), members)


def backward_pass(
    hidden: Float[Array, "b s d"],
    kernel: Float[Array, "d v"],
    targets: Int[Array, "b s"],
    temperature: PerToken,
    members: Bool[Array, "b s"],
    *results: PerToken,
) -> tuple[Float[Array, "b s d"], Float[Array, "d v"]]:
    """Gradients to hidden states and kernel; ``results``: entropy and logsumexp, and the gradients to both outputs."""
    out = tuple(jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in (hidden, kernel))
    found = call("LogprobsGradient", out, *_inputs(hidden, kernel, targets, temperature), members, *results)
    return found[0].astype(hidden.dtype), found[1].astype(kernel.dtype)


def _inputs(hidden: Array, kernel: Array, targets: Array, temperature: Array) -> tuple[Array, Array, Array, Array]:
    """In the kernels' dtypes, the head's numbers being those that the hidden states' dtype has."""
    head = kernel.astype(hidden.dtype).astype(jnp.float32)
    return hidden.astype(jnp.float32), head, targets.astype(jnp.int32), temperature.astype(jnp.float32)
