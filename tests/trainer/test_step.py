"""The compiled step against a slow, obvious reference: one sequence at a time, one token at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from intellect_jax.data.packing import pack
from intellect_jax.models.remat import Remat
from intellect_jax.models.transformer import forward, logits
from intellect_jax.trainer.step import StepOptions, accumulate, component_losses
from intellect_jax.types import Sample
from tests.policies import SMALL, quick_jit, random_params

CFG = SMALL
ICEPOP = ConfigDict({"alpha": 0.5, "beta": 5.0, "rollout_floor": 1e-5})
DPPO = ConfigDict({"delta": 0.2, "kl_coef": 1e-3})
OPTIONS = StepOptions((("icepop", ICEPOP), ("dppo", DPPO)), jnp.float32, Remat())


def make_samples(params, rng, count=9):
    """Mixed lengths, temperatures, losses and weights; sampler logprobs around the trainer's own, some far off."""
    samples = []
    for i in range(count):
        length = int(rng.integers(3, 15))
        tokens = rng.integers(0, CFG.vocab_size, length).astype(np.int32)
        mask = np.arange(length) >= rng.integers(1, length)
        temperature = float(rng.choice([0.7, 1.0, 1.3]))
        noise = rng.normal(0, 0.8, length)
        if i == 1:  # one token far below the floor drops the whole sample
            noise[-1] = 20.0
        logp = np.asarray(sequence_logprobs(quick_jit(sequence_logits)(params, padded(tokens)), tokens, temperature))
        samples.append(
            Sample(
                tokens=tokens,
                loss_mask=mask,
                advantages=np.where(mask, rng.normal(), 0).astype(np.float32),
                sampler_logprobs=np.where(mask, logp + noise, 0).astype(np.float32),
                versions=np.where(mask, 4 if i % 3 == 0 else 3, -1).astype(np.int32),  # 4 is fresh at step 5
                temperature=temperature,
                loss_id=i % 2,
                rl_weight=0.0 if i == 2 else 1.0,
                ce_weight=0.5 if i in (2, 3) else 0.0,
                ref_kl_weight=0.1 if i == 4 else 0.0,
                ref_logprobs=(logp + rng.normal(0, 0.1, length)).astype(np.float32),
            )
        )
    return samples


LENGTH = 16  # one sequence a row, so that every sequence compiles once: causal attention never looks at the padding


def sequence_logits(params, padded):
    positions = jnp.arange(LENGTH)[None]
    return logits(params, CFG, forward(params, CFG, padded, positions, jnp.ones_like(positions)).hidden)[0]


@quick_jit
def pull_back(params, padded, cotangent):
    return jax.vjp(lambda p: sequence_logits(p, padded), params)[1](cotangent)[0]


def padded(tokens):
    return np.pad(tokens, (0, LENGTH - len(tokens)))[None]


def all_logits(params, samples):
    return [quick_jit(sequence_logits)(params, padded(s.tokens)) for s in samples]


def sequence_logprobs(scores, tokens, temperature):
    """log p(tokens[t] | tokens[:t]) for t >= 1 of one sequence with these logits; 0 at t = 0."""
    scores = scores / temperature
    log_p = [scores[t - 1, tokens[t]] - jnp.log(jnp.sum(jnp.exp(scores[t - 1]))) for t in range(1, len(tokens))]
    return jnp.stack([jnp.zeros(()), *log_p])


def reference_loss(scores, samples):
    """Of each sample's logits [S, V]."""
    counts = {
        name: max(sum(int(s.loss_mask[1:].sum()) for s in samples if getattr(s, f"{name}_weight")), 1)
        for name in ("rl", "ce", "ref_kl")
    }
    return sum(reference_sample_loss(*each, counts) for each in zip(scores, samples, strict=True))


def reference_sample_loss(scores, s, counts):
    logp = sequence_logprobs(scores, s.tokens, s.temperature)
    ratios = np.exp(np.asarray(jax.lax.stop_gradient(logp)) - s.sampler_logprobs)
    members = [t for t in range(1, len(s.tokens)) if s.loss_mask[t]]
    dropped = any(ratios[t] < ICEPOP.rollout_floor for t in members)
    total = 0.0
    for t in members:
        r = jnp.exp(logp[t] - s.sampler_logprobs[t])
        if s.loss_id == 0:
            kept = ICEPOP.alpha <= ratios[t] <= ICEPOP.beta and not dropped
            rl = -r * s.advantages[t] if kept else 0.0
        else:
            moved = np.exp(s.sampler_logprobs[t]) * (ratios[t] - 1)
            kept = moved <= DPPO.delta if s.advantages[t] > 0 else moved >= -DPPO.delta
            rl = (-r * s.advantages[t] if kept else 0.0) + DPPO.kl_coef * jnp.log(r) ** 2
        x = jnp.exp(s.ref_logprobs[t] - logp[t])
        total += s.rl_weight * rl / counts["rl"]
        total += s.ce_weight * -logp[t] / counts["ce"]
        total += s.ref_kl_weight * (x - jnp.log(x) - 1) / counts["ref_kl"]
    return total


@pytest.fixture(scope="module")
def case():
    params = jax.device_put(random_params(CFG))
    samples = make_samples(params, np.random.default_rng(0))
    batch = pack(samples, 5, rows=2, seq_buckets=(32,), microbatch_buckets=(4,), routed_shape=None, current_version=4)
    assert batch.arrays["segment_ids"].max() >= 2, "rows must hold several segments"
    grads, sums = quick_jit(lambda p, b: accumulate(p, CFG, b, OPTIONS))(params, batch.arrays)
    return params, samples, grads, sums


def test_packed_loss_equals_one_sequence_at_a_time(case):
    params, samples, _, sums = case
    mine = sums["rl"] + sums["ce"] + sums["ref_kl"]
    np.testing.assert_allclose(mine, reference_loss(all_logits(params, samples), samples), atol=1e-5, rtol=1e-5)


def test_packed_gradients_equal_one_sequence_at_a_time(case):
    params, samples, grads, _ = case
    slopes = jax.grad(reference_loss)(all_logits(params, samples), samples)
    each = [pull_back(params, padded(s.tokens), slope) for s, slope in zip(samples, slopes, strict=True)]
    reference = jax.tree.map(lambda *parts: sum(parts), *each)
    for (path, mine), theirs in zip(
        jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(reference), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, atol=1e-5, err_msg=jax.tree_util.keystr(path))


def test_mismatch_sums_follow_their_definitions(case):
    params, samples, _, sums = case
    kl, fresh_kl, largest = 0.0, 0.0, 0.0
    for scores, s in zip(all_logits(params, samples), samples, strict=True):
        delta = np.asarray(sequence_logprobs(scores, s.tokens, s.temperature), np.float64) - s.sampler_logprobs
        for t in range(1, len(s.tokens)):
            if s.loss_mask[t]:
                kl += np.exp(delta[t]) - delta[t] - 1
                if s.versions[t] == 4:
                    fresh_kl += np.exp(delta[t]) - delta[t] - 1
                    largest = max(largest, abs(delta[t]))
    assert largest > 0.1
    np.testing.assert_allclose(sums["kl_sum"], kl, rtol=1e-4)
    np.testing.assert_allclose(sums["fresh_kl_sum"], fresh_kl, rtol=1e-4)
    np.testing.assert_allclose(sums["fresh_max"], largest, rtol=1e-4)


def test_improbable_tokens_outside_a_component_leave_gradients_finite():
    micro = {
        "loss_id": jnp.zeros((1, 3), jnp.int32),
        "loss_mask": jnp.array([[False, True, True]]),
        "segment_ids": jnp.ones((1, 3), jnp.int32),
        **{name: jnp.zeros((1, 3)) for name in ("sampler_logprobs", "advantages", "ref_logprobs", "ce_weight")},
        "rl_weight": jnp.ones((1, 3)),
        "ref_kl_weight": jnp.zeros((1, 3)),
    }

    def total(logprobs):
        return sum(loss.sum() for loss in component_losses(logprobs, micro, OPTIONS).values())

    assert np.isfinite(jax.grad(total)(jnp.array([[-200.0, -200.0, -1.0]]))).all()
