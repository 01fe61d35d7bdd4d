"""Made-up packed batches in the shape that RL gives them: prompts, answers, advantages, stale logprobs. No JAX."""

from __future__ import annotations

import numpy as np

from intellect_jax.data.packing import pack
from intellect_jax.models.config import ModelConfig
from intellect_jax.types import PackedBatch, Sample

PROMPT = (0.05, 0.25)  # share of a sample that is prompt
STALENESS = 4  # versions that a batch's tokens come from
NOISE = 0.3  # nats between the sampler's logprobs and those of a policy that knows nothing


def made_up_batch(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    cfg: ModelConfig,
    *,
    segment: int,
    replay: bool = False,
) -> PackedBatch:
    """Full rows [M, R, S] of samples of random lengths, ``segment`` tokens on average; of one whole row if that is S.

    ``replay``: with experts for every token to be routed to, spread evenly.
    """
    microbatches, rows, length = shape
    routed = (cfg.num_moe_layers, cfg.num_experts_per_tok) if replay and cfg.num_moe_layers else None
    packed = [
        pack(
            [_sample(rng, n, cfg, routed) for n in segment_lengths(rng, length, segment)],
            1,
            rows=1,
            seq_buckets=(length,),
            microbatch_buckets=(1,),
            routed_shape=routed,
            current_version=STALENESS,
        ).arrays
        for _ in range(microbatches * rows)
    ]
    arrays = {name: np.concatenate([row[name] for row in packed]) for name in packed[0]}
    return PackedBatch(1, {name: a.reshape(microbatches, rows, *a.shape[2:]) for name, a in arrays.items()})


def segment_lengths(rng: np.random.Generator, length: int, mean: int) -> list[int]:
    """Random lengths of at least 2 that fill a row of ``length`` tokens; as many as their ``mean`` asks for."""
    count = max(1, round(length / mean))
    cuts = np.sort(rng.choice(np.arange(1, length // 2), count - 1, replace=False)) * 2
    return np.diff([0, *cuts, length]).tolist()


def _sample(rng: np.random.Generator, length: int, cfg: ModelConfig, routed: tuple[int, int] | None) -> Sample:
    answer = np.arange(length) >= max(1, round(length * rng.uniform(*PROMPT)))
    guess = np.minimum(-np.log(cfg.vocab_size) + NOISE * rng.normal(size=length), 0.0)
    return Sample(
        tokens=rng.integers(0, cfg.vocab_size, length).astype(np.int32),
        loss_mask=answer,
        advantages=np.where(answer, rng.normal(), 0.0).astype(np.float32),
        sampler_logprobs=np.where(answer, guess, 0.0).astype(np.float32),
        versions=np.where(answer, rng.integers(1, STALENESS + 1), -1).astype(np.int32),
        routed_experts=None if routed is None else _routing(rng, length, cfg.n_routed_experts, routed),
    )


def _routing(rng: np.random.Generator, length: int, experts: int, routed: tuple[int, int]) -> np.ndarray:
    """Different experts for each token and layer, int16 [length, L, K]."""
    layers, k = routed
    first = rng.integers(0, experts, (length, layers, 1))
    stride = rng.integers(1, experts // k + 1, (length, layers, 1))
    return ((first + stride * np.arange(k)) % experts).astype(np.int16)
