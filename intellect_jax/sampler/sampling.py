"""From logits to a token and its log-probability, for every slot with its own settings."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt


def sample(
    logits: Float[Array, "b v"],
    seeds: UInt[Array, "b 2"],
    positions: Int[Array, " b"],
    temperature: Float[Array, " b"],
    top_p: Float[Array, " b"],
) -> tuple[Int[Array, " b"], Float[Array, " b"]]:
    """Tokens int32 and their natural-log probabilities under the distribution that they were drawn from.

    The draw depends on nothing but the logits, the request's 64-bit seed and the token's absolute position, so that a
    rerun draws the same whatever else is in the batch. Temperature 0 takes the largest logit, and its log-probability
    is that of the unscaled logits.
    """
    greedy = temperature == 0
    scaled = logits / jnp.where(greedy, 1.0, temperature)[:, None]
    keys = jax.vmap(_key)(seeds, positions)

    def cut() -> tuple[Array, Array]:
        kept = nucleus(jax.nn.log_softmax(scaled), top_p)
        return _draw(jnp.where(top_p[:, None] < 1, kept, scaled), keys, greedy)

    return jax.lax.cond(jnp.any(top_p < 1), cut, lambda: _draw(scaled, keys, greedy))


def nucleus(logprobs: Float[Array, "b v"], top_p: Float[Array, " b"]) -> Float[Array, "b v"]:
    """Renormalised over the fewest most likely tokens whose probabilities reach ``top_p`` (Holtzman et al.,
    arXiv 1904.09751); -inf elsewhere."""
    ordered = jnp.sort(logprobs, axis=-1, descending=True)
    before = jnp.cumsum(jnp.exp(ordered), axis=-1) - jnp.exp(ordered)
    kept = (before < top_p[:, None]).sum(axis=-1, keepdims=True)
    least = jnp.take_along_axis(ordered, jnp.maximum(kept - 1, 0), axis=-1)
    filtered = jax.nn.log_softmax(jnp.where(logprobs >= least, logprobs, -jnp.inf))
    return jnp.where(top_p[:, None] < 1, filtered, logprobs)


def _draw(logits: Float[Array, "b v"], keys: Array, greedy: Bool[Array, " b"]) -> tuple[Array, Array]:
    """By Gumbel-max twice: a chunk of the vocabulary by its total probability, then a token of the chunk.

    The distribution is that of one draw over the vocabulary, for 2 sqrt(V) random numbers in place of V, which would
    take longer than the rest of a small model. Ties of greedy choices go to the smallest token, as with argmax.
    """
    size = 1 << math.ceil(math.log2(logits.shape[-1]) / 2)
    padded = jnp.pad(logits, ((0, 0), (0, -logits.shape[-1] % size)), constant_values=-jnp.inf)
    chunks = padded.reshape(logits.shape[0], -1, size)
    largest = chunks.max(axis=-1)
    anchor = jnp.where(jnp.isfinite(largest), largest, 0.0)  # a chunk may hold nothing but -inf
    totals = anchor + jnp.log(jnp.exp(chunks - anchor[..., None]).sum(axis=-1))
    noise = jax.vmap(lambda key: jax.random.gumbel(key, (totals.shape[1] + size,)))(keys)
    chunk = _choose(largest, totals + noise[:, : totals.shape[1]], greedy)
    inside = jnp.take_along_axis(chunks, chunk[:, None, None], axis=1)[:, 0]
    within = _choose(inside, inside + noise[:, totals.shape[1] :], greedy)
    logprobs = jnp.take_along_axis(inside, within[:, None], axis=-1)[:, 0] - jax.nn.logsumexp(totals, axis=-1)
    return chunk * size + within, logprobs


def _choose(plain: Float[Array, "b n"], noisy: Float[Array, "b n"], greedy: Bool[Array, " b"]) -> Int[Array, " b"]:
    return jnp.argmax(jnp.where(greedy[:, None], plain, noisy), axis=-1).astype(jnp.int32)


def _key(seed: UInt[Array, " 2"], position: Int[Array, ""]) -> Array:
    return jax.random.fold_in(jax.random.wrap_key_data(seed, impl="threefry2x32"), position)
