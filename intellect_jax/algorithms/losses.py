"""RL losses: pure functions from per-token streams to a per-token loss, in one registry.

Every function takes the trainer's logprobs (differentiated) and :class:`Streams`, each array [R, S], and returns the
loss of each token [R, S] before the mask and the normalisation by the global count of member tokens, which the train
step applies: a token that a trust region masks contributes 0 and stays in the count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Streams(NamedTuple):
    """What a loss may look at, each [R, S]."""

    sampler_logprobs: Float[Array, "r s"]
    advantages: Float[Array, "r s"]
    loss_mask: Bool[Array, "r s"]
    segment_ids: Int[Array, "r s"]  # one segment is one sample


def icepop(logprobs: Float[Array, "r s"], streams: Streams, hyper: Any) -> Float[Array, "r s"]:
    """Token-level masked importance sampling of INTELLECT-3 (arXiv 2512.16144, section 3.2, after IcePop).

    With r = pi_train / pi_sampler: -r A where alpha <= r <= beta, else 0 (no gradient through the mask). A whole
    sample is dropped when any of its tokens has r below ``rollout_floor``.
    """
    log_ratio = logprobs - streams.sampler_logprobs
    fixed = jax.lax.stop_gradient(log_ratio)
    keep = (fixed >= jnp.log(hyper.alpha)) & (fixed <= jnp.log(hyper.beta))
    lost = streams.loss_mask & (fixed < jnp.log(hyper.rollout_floor))
    keep = keep & ~any_in_segment(lost, streams.segment_ids)
    # Where a token is masked its ratio may overflow: exponentiate only what is kept, so that 0 * inf never appears.
    return -jnp.where(keep, jnp.exp(jnp.where(keep, log_ratio, 0.0)) * streams.advantages, 0.0)


def dppo(logprobs: Float[Array, "r s"], streams: Streams, hyper: Any) -> Float[Array, "r s"]:
    """prime-rl's default since 2026: mask by total-variation distance, plus a squared log-ratio penalty.

    With p, q the trainer's and the sampler's probability: a token with A > 0 is masked where p - q > delta, others
    where p - q < -delta; loss = -keep A r + kl_coef (log r)^2.
    """
    log_ratio = logprobs - streams.sampler_logprobs
    moved = jax.lax.stop_gradient(jnp.exp(logprobs) - jnp.exp(streams.sampler_logprobs))
    keep = jnp.where(streams.advantages > 0, moved <= hyper.delta, moved >= -hyper.delta)
    surrogate = jnp.where(keep, jnp.exp(jnp.where(keep, log_ratio, 0.0)) * streams.advantages, 0.0)
    return -surrogate + hyper.kl_coef * jnp.square(log_ratio)


LOSSES: dict[str, Callable[..., Float[Array, "r s"]]] = {"icepop": icepop, "dppo": dppo}


def any_in_segment(flags: Bool[Array, "r s"], segment_ids: Int[Array, "r s"]) -> Bool[Array, "r s"]:
    """For each token, whether any token of its segment is flagged."""

    def row(flags_S: Array, ids_S: Array) -> Array:
        counts = jax.ops.segment_sum(flags_S.astype(jnp.int32), ids_S, num_segments=ids_S.shape[0] + 1)
        return counts[ids_S] > 0

    return jax.vmap(row)(flags, segment_ids)


def reference_kl(logprobs: Float[Array, "r s"], ref_logprobs: Float[Array, "r s"]) -> Float[Array, "r s"]:
    """Unbiased low-variance estimate of KL(policy || reference): x - log x - 1, x = pi_ref / pi (Schulman, 2020)."""
    log_x = ref_logprobs - logprobs
    return jnp.exp(log_x) - log_x - 1.0
