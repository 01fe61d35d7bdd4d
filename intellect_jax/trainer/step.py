"""One optimizer step over a packed batch: RL, cross-entropy and reference-KL terms, accumulated over microbatches.

loss = sum over member tokens of (rl + ce + ref_kl), each component divided by its own count of member tokens in the
whole batch. A token is a member of a component where ``loss_mask`` is set and the component's weight is not 0.

Shape suffixes: M microbatches, R rows, S tokens of a row, L MoE layers, K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from intellect_jax.algorithms.losses import LOSSES, Streams, reference_kl
from intellect_jax.models.config import ModelConfig
from intellect_jax.models.lora import Adapter, with_adapter
from intellect_jax.models.lora_shape import Lora
from intellect_jax.models.ops import LOCAL, Ops
from intellect_jax.models.remat import Remat
from intellect_jax.models.transformer import Params, forward, head_kernel
from intellect_jax.trainer.balance import balance_metrics, balanced, expert_loads
from intellect_jax.trainer.optimizer import Optimizer

COMPONENTS = ("rl", "ce", "ref_kl")
Batch = dict[str, Array]


class TrainState(NamedTuple):
    params: Params  # float32 masters of what trains: the whole policy, or with LoRA its adapters
    opt_state: optax.OptState


class StepOptions(NamedTuple):
    """What of the config the compiled step depends on."""

    losses: tuple[tuple[str, ConfigDict], ...]  # (name, hyper-parameters), indexed by loss_id
    compute_dtype: jnp.dtype
    remat: Remat
    lora: Lora | None = None
    ops: Ops = LOCAL
    router_bias_rate: float = 0.0

    @classmethod
    def from_config(cls, config: ConfigDict, ops: Ops = LOCAL) -> StepOptions:
        losses = ((config.algorithm.loss, config.algorithm[config.algorithm.loss]),)
        lora = Lora.from_config(config.lora)
        dtype, trainer = jnp.dtype(config.model.compute_dtype), config.trainer
        remat = Remat(trainer.remat, trainer.offload_activations)
        return cls(losses, dtype, remat, lora, ops, trainer.router_bias_rate)


def batch_logprobs(params: Params, cfg: ModelConfig, micro: Batch, options: StepOptions) -> tuple[Array, Array, Array]:
    """log p(tokens[t] | tokens[<t]) at the token's temperature, and entropy, each [R, S], 0 outside ``loss_mask``; and
    the experts that every token visited, int16 [R, S, L, K], in the order in which the mesh holds a row's tokens."""
    ops = options.ops
    tokens, positions, segment_ids = (ops.shuffle(micro[name]) for name in ("tokens", "positions", "segment_ids"))
    out = forward(
        params,
        cfg,
        tokens,
        positions,
        segment_ids,
        compute_dtype=options.compute_dtype,
        replay=ops.shuffle(micro["routed_experts"]) if "routed_experts" in micro else None,
        remat=options.remat,
        ops=ops,
    )
    # Position t predicts token t+1. What is shifted are numbers, not hidden states, which may lie on many devices.
    following = (jnp.roll(micro[name], -1, axis=1) for name in ("tokens", "temperature", "loss_mask"))
    ahead = ops.logprobs(out.hidden, head_kernel(params, cfg), *(ops.shuffle(x) for x in following))
    logprobs, entropy = (jnp.roll(ops.unshuffle(x), 1, axis=1) for x in ahead)
    return logprobs, entropy, out.routed_experts


def component_losses(logprobs: Float[Array, "r s"], micro: Batch, options: StepOptions) -> dict[str, Array]:
    """Each component's weighted per-token loss [R, S], 0 outside its members."""
    rl_members = members(micro, "rl")
    streams = Streams(micro["sampler_logprobs"], micro["advantages"], rl_members, micro["segment_ids"])
    rl = jnp.zeros_like(logprobs)
    for index, (name, hyper) in enumerate(options.losses):
        rl = jnp.where(micro["loss_id"] == index, LOSSES[name](logprobs, streams, hyper), rl)
    # Tokens outside the component have no reference: an exp of their difference could overflow and poison gradients.
    reference = jnp.where(members(micro, "ref_kl"), micro["ref_logprobs"], jax.lax.stop_gradient(logprobs))
    per_token = {"rl": rl, "ce": -logprobs, "ref_kl": reference_kl(logprobs, reference)}
    return {c: jnp.where(members(micro, c), per_token[c], 0.0) * micro[f"{c}_weight"] for c in COMPONENTS}


def joined(trained: Params, base: Params | None, options: StepOptions) -> Params:
    """The whole policy: what trains, with LoRA on top of its frozen base."""
    return trained if base is None or options.lora is None else with_adapter(base, Adapter(trained, options.lora))


def members(batch: Batch, component: str) -> Array:
    return batch["loss_mask"] & (batch[f"{component}_weight"] != 0)


def microbatch_loss(
    trained: Params,
    cfg: ModelConfig,
    micro: Batch,
    counts: dict[str, Array],
    options: StepOptions,
    base: Params | None = None,
) -> tuple[Array, dict[str, Array]]:
    """This microbatch's share of the batch's loss, and sums for the metrics."""
    logprobs, entropy, routed = batch_logprobs(joined(trained, base, options), cfg, micro, options)
    loads = expert_loads(routed, options.ops.shuffle(micro["segment_ids"]) > 0, cfg.n_routed_experts)
    losses = {c: jnp.sum(loss) / counts[c] for c, loss in component_losses(logprobs, micro, options).items()}
    sums = _token_sums(jax.lax.stop_gradient(logprobs), entropy, micro)
    return losses["rl"] + losses["ce"] + losses["ref_kl"], {**losses, **sums, "loads": loads}


def _token_sums(logprobs: Array, entropy: Array, micro: Batch) -> dict[str, Array]:
    mask = micro["loss_mask"]
    sampled = mask & (micro["staleness"] >= 0)
    fresh = mask & (micro["staleness"] == 0)
    log_ratio = jnp.where(sampled, logprobs - micro["sampler_logprobs"], 0.0)
    kl = jnp.expm1(log_ratio) - log_ratio  # r - log r - 1 without cancellation near r = 1
    return {
        "entropy_sum": jnp.sum(jnp.where(mask, entropy, 0.0)),
        "kl_sum": jnp.sum(kl),
        "fresh_kl_sum": jnp.sum(jnp.where(fresh, kl, 0.0)),
        "fresh_max": jnp.max(jnp.where(fresh, jnp.abs(log_ratio), 0.0)),
    }


def accumulate(
    params: Params, cfg: ModelConfig, batch: Batch, options: StepOptions, base: Params | None = None
) -> tuple[Params, dict[str, Array]]:
    """Gradient of the whole batch's loss and the metric sums, scanning over microbatches; empty ones cost nothing.

    ``base``: with LoRA the frozen parameters, ``params`` being the adapters.
    """
    counts = {c: jnp.maximum(jnp.sum(members(batch, c)), 1).astype(jnp.float32) for c in COMPONENTS}
    grad_fn = jax.grad(microbatch_loss, has_aux=True)
    if batch["tokens"].shape[0] == 1:  # nothing to add up, and no second set of gradients to keep
        return grad_fn(params, cfg, jax.tree.map(itemgetter(0), batch), counts, options, base)

    def add(carry, micro):
        def run(carry):
            grads, sums = carry
            new_grads, new_sums = grad_fn(params, cfg, micro, counts, options, base)
            largest = jnp.maximum(sums["fresh_max"], new_sums["fresh_max"])
            sums = {**jax.tree.map(jnp.add, sums, new_sums), "fresh_max": largest}
            return jax.tree.map(jnp.add, grads, new_grads), sums

        return jax.lax.cond(jnp.any(micro["loss_mask"]), run, lambda carry: carry, carry), None

    names = (*COMPONENTS, "entropy_sum", "kl_sum", "fresh_kl_sum", "fresh_max")
    sums = {name: jnp.zeros((), jnp.float32) for name in names}
    sums["loads"] = jnp.zeros((cfg.num_moe_layers, cfg.n_routed_experts), jnp.float32)
    return jax.lax.scan(add, (jax.tree.map(jnp.zeros_like, params), sums), batch)[0]


def make_train_step(cfg: ModelConfig, options: StepOptions, optimizer: Optimizer) -> Callable[..., Any]:
    """``step(state, batch, learning_rate, base) -> (state, metrics)``; jit it with the state donated.

    ``base``: the frozen parameters of a LoRA run, else None.
    """

    def step(
        state: TrainState, batch: Batch, learning_rate: Array, base: Params | None = None
    ) -> tuple[TrainState, dict[str, Array]]:
        grads, sums = accumulate(state.params, cfg, batch, options, base)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p - learning_rate * u, state.params, updates)
        loads = sums.pop("loads")
        if options.router_bias_rate:
            params = balanced(params, loads, options.router_bias_rate)
        metrics = {**sums, **balance_metrics(loads), "grad_norm": optax.global_norm(grads)}
        return TrainState(params, opt_state), metrics

    return step
