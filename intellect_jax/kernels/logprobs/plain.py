"""The plain reference: from all logits at once.

Shape suffixes: B batch, S sequence, V vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

PerToken = Float[Array, "b s"]


def token_logprobs(
    logits: Float[Array, "b s v"], targets: Int[Array, "b s"], temperature: PerToken
) -> tuple[PerToken, PerToken]:
    """log softmax(logits / temperature)[target] and the entropy of that distribution, in nats."""
    log_p = jax.nn.log_softmax(logits / temperature[..., None], axis=-1)
    chosen = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    return chosen, -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
