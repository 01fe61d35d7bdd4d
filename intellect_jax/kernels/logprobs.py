"""Log-probability and entropy of given tokens from final hidden states, in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def token_logprobs(
    logits: Float[Array, "b s v"], targets: Int[Array, "b s"], temperature: Float[Array, "b s"]
) -> tuple[Float[Array, "b s"], Float[Array, "b s"]]:
    """log softmax(logits / temperature)[target], and the entropy of that distribution, in nats."""
    log_p = jax.nn.log_softmax(logits / temperature[..., None], axis=-1)
    chosen = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    return chosen, -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
