"""From logits to a token and its log-probability, for every slot with its own settings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt


def sample(
    logits: Float[Array, "b v"],
    seeds: UInt[Array, "b 2"],
    positions: Int[Array, " b"],
    temperature: Float[Array, " b"],
    top_p: Float[Array, " b"],
) -> tuple[Int[Array, " b"], Float[Array, " b"]]:
    """Tokens int32 and their natural-log probabilities under the distribution that they were drawn from.

    The draw (Gumbel-max) depends on nothing but the logits, the request's 64-bit seed and the token's absolute
    position, so that a rerun draws the same whatever else is in the batch. Temperature 0 takes the largest logit, and
    its log-probability is that of the unscaled logits.
    """
    greedy = temperature == 0
    logprobs = jax.nn.log_softmax(logits / jnp.where(greedy, 1.0, temperature)[:, None])
    logprobs = jax.lax.cond(jnp.any(top_p < 1), nucleus, lambda x, _: x, logprobs, top_p)
    noise = jax.vmap(_gumbel, in_axes=(0, 0, None))(seeds, positions, logits.shape[-1])
    tokens = jnp.argmax(jnp.where(greedy[:, None], logits, logprobs + noise), axis=-1).astype(jnp.int32)
    return tokens, jnp.take_along_axis(logprobs, tokens[:, None], axis=-1)[:, 0]


def nucleus(logprobs: Float[Array, "b v"], top_p: Float[Array, " b"]) -> Float[Array, "b v"]:
    """Renormalised over the fewest most likely tokens whose probabilities reach ``top_p`` (Holtzman et al.,
    arXiv 1904.09751); -inf elsewhere."""
    ordered = jnp.sort(logprobs, axis=-1, descending=True)
    before = jnp.cumsum(jnp.exp(ordered), axis=-1) - jnp.exp(ordered)
    kept = (before < top_p[:, None]).sum(axis=-1, keepdims=True)
    least = jnp.take_along_axis(ordered, jnp.maximum(kept - 1, 0), axis=-1)
    filtered = jax.nn.log_softmax(jnp.where(logprobs >= least, logprobs, -jnp.inf))
    return jnp.where(top_p[:, None] < 1, filtered, logprobs)


def _gumbel(seed: UInt[Array, " 2"], position: Int[Array, ""], size: int) -> Float[Array, " v"]:
    key = jax.random.wrap_key_data(seed, impl="threefry2x32")
    return jax.random.gumbel(jax.random.fold_in(key, position), (size,))
