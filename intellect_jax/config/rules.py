"""Rules that tie several configuration keys together, as one table: (keys, when it is broken, what would be right)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from ml_collections import ConfigDict

from intellect_jax.parallel.axes import AXES

_DECAYS = ("trainer.optimizer.b1", "trainer.optimizer.b2", "trainer.optimizer.muon.momentum")


@dataclass(frozen=True)
class Rule:
    """``broken(config)`` is true where the combination cannot work; ``right`` says what would."""

    keys: tuple[str, ...]
    broken: Callable[[ConfigDict], bool]
    right: str


def _microbatches_needed(config: ConfigDict) -> int:
    """Microbatches that the largest possible batch needs when every rollout has sampler.max_len tokens."""
    per_row = max(config.trainer.seq_buckets) // config.sampler.max_len
    samples = config.orchestrator.batch_size * config.orchestrator.max_turns  # a template may fork a branch every turn
    return ceil(samples / max(per_row, 1) / config.trainer.rows)


RULES: tuple[Rule, ...] = (
    Rule(
        ("trainer.attention", "model.compute_dtype"),
        lambda c: c.trainer.attention == "tokamax" and c.model.compute_dtype != "bfloat16",
        "tokamax's kernels compute in bfloat16",
    ),
    Rule(
        ("orchestrator.batch_size", "orchestrator.group_size"),
        lambda c: c.orchestrator.batch_size % c.orchestrator.group_size != 0,
        "batch_size must be a multiple of group_size",
    ),
    Rule(
        ("sampler.max_len", "orchestrator.max_new_tokens"),
        lambda c: c.orchestrator.max_new_tokens >= c.sampler.max_len,
        "max_len must exceed max_new_tokens, or no prompt fits",
    ),
    Rule(
        ("sampler.prefill_buckets", "sampler.max_len"),
        lambda c: c.sampler.backend == "jax" and max(c.sampler.prefill_buckets) != c.sampler.max_len,
        "the largest prefill bucket must equal max_len, so that a running request can be recomputed",
    ),
    Rule(
        ("sampler.min_inflight", "sampler.max_inflight"),
        lambda c: 0 < c.sampler.max_inflight < c.sampler.min_inflight,
        "the most must not be less than the fewest",
    ),
    Rule(
        ("sampler.pages", "sampler.page_size", "sampler.max_len"),
        lambda c: 0 < c.sampler.pages * c.sampler.page_size < c.sampler.max_len,
        "the pages must hold the longest request, or it could never run (0: as many as all slots can need)",
    ),
    Rule(
        ("trainer.seq_buckets", "sampler.max_len"),
        lambda c: max(c.trainer.seq_buckets) < c.sampler.max_len,
        "the largest row must hold the longest rollout",
    ),
    Rule(
        ("trainer.microbatch_buckets", "trainer.rows", "orchestrator.batch_size", "sampler.max_len"),
        lambda c: max(c.trainer.microbatch_buckets) < _microbatches_needed(c),
        "a batch of the longest rollouts must fit: raise the largest microbatch bucket, rows or seq_buckets",
    ),
    Rule(
        ("model.num_attention_heads", "model.num_key_value_heads"),
        lambda c: not c.model.path and c.model.num_attention_heads % c.model.num_key_value_heads != 0,
        "query heads must be a multiple of key/value heads",
    ),
    Rule(
        ("model.head_dim", "model.partial_rotary_factor"),
        lambda c: not c.model.path and int(c.model.head_dim * c.model.partial_rotary_factor) % 2 != 0,
        "RoPE rotates pairs: their product must be even",
    ),
    Rule(
        ("model.n_routed_experts", "model.n_group"),
        lambda c: not c.model.path and c.model.n_routed_experts % c.model.n_group != 0,
        "experts must divide evenly into groups",
    ),
    Rule(
        ("model.topk_group", "model.n_group"),
        lambda c: not c.model.path and c.model.topk_group > c.model.n_group,
        "topk_group must be at most n_group",
    ),
    Rule(
        ("model.num_experts_per_tok", "model.n_routed_experts", "model.n_group", "model.topk_group"),
        lambda c: (
            not c.model.path
            and c.model.num_experts_per_tok > c.model.n_routed_experts // c.model.n_group * c.model.topk_group
        ),
        "a token cannot visit more experts than its groups hold",
    ),
    Rule(
        ("model.first_k_dense_replace", "model.num_hidden_layers"),
        lambda c: not c.model.path and c.model.first_k_dense_replace > c.model.num_hidden_layers,
        "at most every layer can be dense",
    ),
    Rule(
        ("parallel.data", "parallel.fsdp", "parallel.expert", "parallel.context", "parallel.tensor"),
        lambda c: [c.parallel[axis] for axis in AXES].count(-1) > 1,
        "only one axis may be -1 and take the devices that are left",
    ),
    Rule(
        ("trainer.gpu_memory", "sampler.gpu_memory", "sampler.num_servers"),
        lambda c: not c.sampler.urls and c.trainer.gpu_memory + c.sampler.gpu_memory * c.sampler.num_servers > 1,
        "the processes of one machine share its GPUs: at most 1 in all",
    ),
    Rule(
        ("sampler.backend", "sampler.python", "sampler.urls"),
        lambda c: c.sampler.backend == "vllm" and not c.sampler.python and not c.sampler.urls,
        "vLLM lives in an environment of its own: `make vllm`, then sampler.python='.venv-vllm/bin/python'; or give "
        "the urls of servers that run already",
    ),
    Rule(
        ("weights.transport", "sampler.backend", "distributed.processes"),
        lambda c: c.weights.transport == "nccl" and (c.sampler.backend != "vllm" or c.distributed.processes > 1),
        'NCCL brings weights from one trainer process to vLLM: sampler.backend="vllm", or weights.transport="http"',
    ),
    Rule(
        ("weights.transport", "sampler.platform", "sampler.urls"),
        lambda c: c.weights.transport == "nccl" and c.sampler.platform != "cpu" and not c.sampler.urls,
        "NCCL connects different GPUs, and servers started here would share the trainer's: start them with "
        "CUDA_VISIBLE_DEVICES of their own (`launch vllm`) and name them",
    ),
    Rule(
        ("weights.transport", "weights.deltas", "weights.dtype", "lora.rank"),
        lambda c: (
            c.weights.transport == "nccl" and (not c.weights.deltas or c.weights.dtype != "bfloat16" or c.lora.rank > 0)
        ),
        "NCCL sends the copy of the policy that deltas are made from: those on, in bfloat16, and no LoRA",
    ),
    Rule(
        ("sampler.backend", "sampler.on_update"),
        lambda c: c.sampler.backend == "vllm" and c.sampler.on_update == "keep_kv",
        "vLLM forgets its cache at every update: use reprefill or wait",
    ),
    Rule(
        ("weights.keep", "orchestrator.max_off_policy_steps"),
        lambda c: c.weights.keep < c.orchestrator.max_off_policy_steps + 2,
        "keep at least max_off_policy_steps + 2 versions: the trainer may be so far ahead of the fleet",
    ),
    Rule(
        ("lora.rank", "lora.targets"),
        lambda c: c.lora.rank > 0 and not c.lora.targets,
        "LoRA needs something to adapt: attention, dense, experts or several of them",
    ),
    Rule(
        ("lora.rank", "trainer.router_bias_rate"),
        lambda c: c.lora.rank > 0 and c.trainer.router_bias_rate > 0,
        "the adapters alone train: with LoRA the routers' bias stays as it is",
    ),
    Rule(
        ("lora.rank", "export.lora", "model.path"),
        lambda c: c.lora.rank > 0 and c.export.lora == "adapter" and not c.model.path,
        "an adapter needs a base that others can load: give model.path, or export it merged",
    ),
    Rule(
        ("trainer.offload_activations", "trainer.remat"),
        lambda c: c.trainer.offload_activations and c.trainer.remat == "none",
        "only what a policy keeps can be moved to the host: use matmuls, attention or full",
    ),
    Rule(
        ("trainer.optimizer.name", "lora.rank"),
        lambda c: c.trainer.optimizer.name == "muon" and c.lora.rank > 0,
        "adapters train with adamw: Muon's step is that of a whole matrix, not of one of its two factors",
    ),
    Rule(
        ("trainer.optimizer.schedule", "trainer.optimizer.decay_steps"),
        lambda c: (c.trainer.optimizer.schedule == "wsd") != (c.trainer.optimizer.decay_steps > 0),
        "wsd, and only wsd, needs decay_steps above 0",
    ),
    Rule(
        ("trainer.optimizer.moments_dtype", *_DECAYS),
        lambda c: c.trainer.optimizer.moments_dtype == "bfloat16" and any(_get(c, key) > 0.99 for key in _DECAYS),
        "bfloat16 moments stand still unless each step changes them by a hundredth: use decays of at most 0.99, or "
        "float32",
    ),
    Rule(
        ("sft.microbatches", "trainer.microbatch_buckets"),
        lambda c: c.sft.microbatches > max(c.trainer.microbatch_buckets),
        "a supervised step must fit the largest microbatch bucket",
    ),
    Rule(
        ("sft.steps", "sft.data"),
        lambda c: c.sft.steps > 0 and not c.sft.data,
        "supervised steps need data",
    ),
    Rule(
        ("plan.response_mean", "plan.response_p95"),
        lambda c: c.plan.response_p95 > 0 and not 1 <= c.plan.response_p95 / max(c.plan.response_mean, 1e-9) <= 3.86,
        "a lognormal's 95th percentile is 1 to 3.86 times its mean: give both",
    ),
    Rule(
        ("trainer.max_steps", "sft.steps"),
        lambda c: c.trainer.max_steps == 0 and c.sft.steps == 0 and not c.eval.only,
        "there is nothing to do: ask for RL steps, supervised steps or both",
    ),
    Rule(
        ("trainer.max_steps", "envs"),
        lambda c: c.trainer.max_steps > 0 and not c.envs,
        "RL needs at least one environment, e.g. config.envs = (env('reverse_text'),)",
    ),
)


def cross_key_problems(config: ConfigDict) -> list[str]:
    """One line per broken rule."""
    lines = []
    for rule in RULES:
        if rule.broken(config):
            values = ", ".join(f"{key}={_get(config, key)!r}" for key in rule.keys)
            lines.append(f"{values}: {rule.right}")
    return lines


def _get(config: ConfigDict, dotted: str):
    for part in dotted.split("."):
        config = config[part]
    return config
