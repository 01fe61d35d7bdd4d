"""Every configuration key, once: its default, its meaning with unit, and what values are right.

A recipe in ``configs/`` starts from :func:`default_config` and overrides. :func:`validate` checks a resolved config and
returns one line per problem; nothing else in the code base checks configuration values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict, config_dict

from intellect_jax import config_rules
from intellect_jax.config_checks import (
    Check,
    above,
    at_least,
    axis_size,
    between,
    environments,
    host_port,
    http_address,
    http_addresses,
    increasing,
    lora_targets,
    one_of,
    segment_length,
    share,
    tcp_address,
    tensorboard,
    texts,
    zero_or_at_least,
)
from intellect_jax.models.config import TRAITS


@dataclass(frozen=True)
class Key:
    """One configuration key. ``check`` returns what would be right, or None when the value is fine."""

    default: Any
    doc: str
    check: Check | None = None


def env(name: str, ratio: float = 1.0, **args: Any) -> dict[str, Any]:
    """One entry of ``config.envs``: the package's name, its share of the prompts, arguments of load_environment."""
    return {"name": name, "ratio": ratio, "args": args}


SCHEMA: dict[str, Any] = {
    "seed": Key(0, "seed of every random stream of the run", at_least(0)),
    "run": {
        "name": Key("", "run directory's name; empty: <config>-seed<seed>"),
        "root": Key("runs", "folder that holds run directories"),
    },
    "model": {
        "path": Key("", "Hugging Face folder or id to start from; empty: fresh weights of the shape below"),
        "family": Key(
            "glm4_moe",
            "architecture of fresh weights (a Hugging Face model_type); it has the last word on what it fixes, "
            "such as use_qk_norm",
            one_of(*TRAITS),
        ),
        "vocab_size": Key(0, "rows of the embedding; 0: the tokenizer's size", at_least(0)),
        "hidden_size": Key(128, "width of the residual stream", at_least(1)),
        "num_hidden_layers": Key(4, "decoder layers", at_least(1)),
        "num_attention_heads": Key(4, "query heads", at_least(1)),
        "num_key_value_heads": Key(2, "key/value heads", at_least(1)),
        "head_dim": Key(32, "width of one head", at_least(2)),
        "intermediate_size": Key(384, "width of dense MLPs", at_least(1)),
        "moe_intermediate_size": Key(128, "width of one expert", at_least(1)),
        "n_routed_experts": Key(16, "routed experts per MoE layer", at_least(1)),
        "num_experts_per_tok": Key(2, "experts a token visits", at_least(1)),
        "n_shared_experts": Key(1, "experts every token visits", at_least(0)),
        "first_k_dense_replace": Key(1, "leading layers with a dense MLP", at_least(0)),
        "n_group": Key(1, "groups of experts for grouped routing", at_least(1)),
        "topk_group": Key(1, "groups a token may choose experts from", at_least(1)),
        "norm_topk_prob": Key(True, "renormalise the chosen experts' weights to sum to 1"),
        "routed_scaling_factor": Key(1.0, "factor on the routed experts' weights", above(0)),
        "attention_bias": Key(True, "bias on the query, key and value projections"),
        "use_qk_norm": Key(False, "RMSNorm on queries and keys, per head"),
        "partial_rotary_factor": Key(0.5, "share of head_dim that RoPE rotates", between(0.0, 1.0)),
        "rope_theta": Key(10000.0, "RoPE base", above(0)),
        "rms_norm_eps": Key(1e-5, "epsilon of every RMSNorm", above(0)),
        "tie_word_embeddings": Key(False, "share embedding and head"),
        "max_position_embeddings": Key(512, "longest context the config file announces, tokens", at_least(1)),
        "initializer_range": Key(0.02, "standard deviation of fresh weights", above(0)),
        "compute_dtype": Key("bfloat16", "dtype of activations", one_of("bfloat16", "float32")),
    },
    "lora": {
        "rank": Key(0, "rank of the adapters, which alone train (0: no LoRA, the whole policy trains)", at_least(0)),
        "alpha": Key(16.0, "the adapters' share is alpha / rank", above(0)),
        "targets": Key(
            ("attention",),
            "what has adapters: attention (all four projections), dense (MLPs of dense layers, shared experts), "
            "experts (routed ones)",
            lora_targets,
        ),
    },
    "tokenizer": {
        "path": Key("", "tokenizer folder or id; empty: model.path's, or a character tokenizer for fresh weights"),
    },
    "envs": Key((), "environments: a tuple of config.env(name, ratio=…, **arguments)", environments),
    "algorithm": {
        "advantage": Key("group_mean", "how rewards become advantages", one_of("group_mean", "group_std")),
        "loss": Key("icepop", "RL loss", one_of("icepop", "dppo")),
        "icepop": {
            "alpha": Key(0.5, "lowest trainer/sampler ratio that still trains", between(0.0, 1.0)),
            "beta": Key(5.0, "highest trainer/sampler ratio that still trains", at_least(1.0)),
            "rollout_floor": Key(1e-5, "a token whose ratio is lower drops its whole rollout", at_least(0.0)),
        },
        "dppo": {
            "delta": Key(0.2, "largest |p - q| towards which a token still trains", above(0)),
            "kl_coef": Key(1e-3, "weight of (log r)^2", at_least(0.0)),
        },
        "ce_coef": Key(0.0, "weight of a cross-entropy term during RL (0: none)", at_least(0.0)),
    },
    "sft": {
        "steps": Key(0, "supervised steps before RL (0: none)", at_least(0)),
        "data": Key("", "JSONL, Parquet, or tfds:<name>/<split> with prompt/completion or messages"),
        "microbatches": Key(1, "microbatches of one supervised step", at_least(1)),
        "learning_rate": Key(1e-3, "peak learning rate", above(0)),
        "warmup_steps": Key(10, "steps of linear warm-up", at_least(0)),
        "decay_steps": Key(0, "last steps over which the rate falls linearly to 0 (0: constant)", at_least(0)),
    },
    "trainer": {
        "max_steps": Key(100, "RL steps in all", at_least(0)),
        "optimizer": {
            "name": Key("adamw", "muon: for the matrices of the layers, AdamW for the rest", one_of("adamw", "muon")),
            "learning_rate": Key(1e-6, "peak learning rate", above(0)),
            "warmup_steps": Key(0, "steps of linear warm-up", at_least(0)),
            "schedule": Key(
                "constant",
                "after warm-up; wsd: stable, then linearly to 0 over decay_steps",
                one_of("constant", "linear", "cosine", "wsd"),
            ),
            "decay_steps": Key(
                0, "last steps, over which the rate of wsd falls; a shorter run's falls throughout", at_least(0)
            ),
            "b1": Key(0.9, "Adam's first-moment decay", share),
            "b2": Key(0.95, "Adam's second-moment decay", share),
            "eps": Key(1e-8, "Adam's epsilon", above(0)),
            "weight_decay": Key(0.0, "decoupled decay of matrices (not norms, biases)", at_least(0.0)),
            "clip_norm": Key(1.0, "largest global gradient norm", above(0)),
            "moments_dtype": Key("float32", "dtype in which moments are kept", one_of("float32", "bfloat16")),
            "offload": Key(False, "keep moments in host memory between steps"),
            "muon": {
                "momentum": Key(0.95, "decay of the momentum", share),
                "nesterov": Key(True, "Nesterov's momentum"),
                "steps": Key(5, "Newton-Schulz iterations", at_least(1)),
                "dtype": Key("bfloat16", "dtype of the Newton-Schulz iterations", one_of("bfloat16", "float32")),
            },
        },
        "seq_buckets": Key((256,), "row lengths a batch may have, tokens; each compiles once", increasing),
        "microbatch_buckets": Key((4,), "microbatches a batch may have; each compiles once", increasing),
        "rows": Key(8, "rows in one microbatch", at_least(1)),
        "attention": Key(
            "auto",
            "how attention is computed; auto: the best on the platform for the row's length",
            one_of("auto", "plain", "chunked", "splash", "tokamax"),
        ),
        "router_bias_rate": Key(
            0.0,
            "change of a router's selection bias a step, towards the experts with less than mean load (0: none); "
            "only routers with such a bias (glm4_moe)",
            at_least(0.0),
        ),
        "remat": Key(
            "none",
            "what the backward pass computes again: none; all but matrix products and attention (matmuls); "
            "all but the attention half's (attention); full: each layer from its input",
            one_of("none", "matmuls", "attention", "full"),
        ),
        "offload_activations": Key(False, "keep in host memory what trainer.remat keeps"),
        "router_replay": Key(True, "use the experts that the sampler chose for each token"),
        "platform": Key("", "JAX platform of the trainer; empty: JAX's own choice", one_of("", "cpu", "cuda", "tpu")),
        "gpu_memory": Key(0.0, "share of each GPU's memory that a process takes (0: JAX's own choice, 3/4)", share),
        "batch_timeout": Key(600.0, "longest wait for a batch without a sign of life, seconds", above(0)),
    },
    "parallel": {
        "data": Key(1, "replicas of the fully sharded groups (-1: what is left)", axis_size),
        "fsdp": Key(-1, "devices over which parameters and batch are sharded (-1: what is left)", axis_size),
        "expert": Key(1, "devices over which experts are sharded", axis_size),
        "context": Key(1, "devices over which a sequence is sharded", axis_size),
        "tensor": Key(1, "devices over which heads and MLP width are sharded", axis_size),
        "context_strategy": Key(
            "ring",
            "how devices that share a row attend: ring passes keys around, ulysses exchanges tokens for heads",
            one_of("ring", "ulysses"),
        ),
        "expert_strategy": Key(
            "auto",
            "with an expert axis: every token to all its devices (ring), or to those with experts of its, in messages "
            "of the length needed (ragged; not on CPUs) or of a bounded one (padded)",
            one_of("auto", "ring", "ragged", "padded"),
        ),
        "expert_capacity": Key(
            2.0,
            "buffers of an expert shard hold so many times a balanced load; a larger load is computed in pieces, "
            "exactly (0: buffers for any load)",
            zero_or_at_least(1.0),
        ),
        "expert_chunks": Key(2, "parts of a shard's tokens, so that one is sent while another computes", at_least(1)),
    },
    "distributed": {
        "processes": Key(
            0, "trainer processes, which share one mesh; 0: those of Slurm or Kubernetes, or 1", at_least(0)
        ),
        "coordinator": Key(
            "",
            "host:port where trainer process 0 meets the others; empty: chosen at start, or by the cluster",
            host_port,
        ),
        "local_devices": Key(0, "devices of each trainer process (0: JAX's own choice)", at_least(0)),
        "start_timeout": Key(300.0, "longest wait for all trainer processes to start, seconds", at_least(1.0)),
        "heartbeat_timeout": Key(10.0, "silence of a trainer process that ends the others, seconds", at_least(2.0)),
    },
    "orchestrator": {
        "batch_size": Key(128, "rollouts per trainer step", at_least(1)),
        "group_size": Key(16, "rollouts per prompt", at_least(2)),
        "max_off_policy_steps": Key(8, "hard bound on a token's staleness, versions", at_least(0)),
        "max_inflight_groups": Key(16, "groups generating at once", at_least(1)),
        "queue_size": Key(1, "packed batches waiting for the trainer", at_least(1)),
        "max_new_tokens": Key(32, "longest answer, tokens a turn", at_least(1)),
        "max_turns": Key(1, "longest conversation, model turns", at_least(1)),
        "temperature": Key(1.0, "sampling temperature of training rollouts", above(0)),
        "max_attempts": Key(3, "tries of one generation or one environment call", at_least(1)),
        "address": Key("", "where trainers fetch batches; empty: chosen at start", tcp_address),
    },
    "eval": {
        "every": Key(0, "RL steps between evaluations (0: only before and after)", at_least(0)),
        "prompts": Key(256, "held-out prompts of one evaluation", at_least(1)),
        "temperature": Key(0.0, "sampling temperature (0: greedy)", at_least(0.0)),
        "only": Key(False, "evaluate once and end, without a trainer (set by `launch eval`)"),
        "weights": Key("", "folder of published versions that eval.only evaluates; empty: what the fleet serves"),
    },
    "environments": {
        "workers": Key(1, "environment worker processes", at_least(1)),
        "concurrency": Key(32, "calls that one worker runs at once", at_least(1)),
        "timeout": Key(60.0, "longest environment call, seconds", above(0)),
        "address": Key("", "where workers find the orchestrator; empty: chosen at start", tcp_address),
    },
    "sampler": {
        "backend": Key("jax", "rollout engine", one_of("jax", "vllm")),
        "python": Key("", "interpreter of the environment that has vLLM: .venv-vllm/bin/python after `make vllm`"),
        "arguments": Key((), "further command line arguments of vLLM, e.g. ('--tensor-parallel-size=8',)", texts),
        "kv_cache_gib": Key(1, "memory of vLLM's KV cache on a CPU, GiB", at_least(1)),
        "num_servers": Key(1, "servers that the launcher starts", at_least(1)),
        "urls": Key((), "base URLs of the fleet; empty: chosen at start", http_addresses),
        "slots": Key(64, "requests that decode together", at_least(1)),
        "min_inflight": Key(
            1, "requests that a server always may have at once, however full it says it is", at_least(1)
        ),
        "max_inflight": Key(
            0,
            "most requests that one server has at once (0: slots + prefill_rows); its /metrics steer below",
            at_least(0),
        ),
        "cache_high_water": Key(
            0.95, "use of its KV cache from which a server gets fewer requests at once", between(0.0, 1.0)
        ),
        "max_len": Key(64, "longest prompt plus answer, tokens", at_least(2)),
        "prefill_buckets": Key((32, 64), "padded prompt lengths, tokens; each compiles once", increasing),
        "prefill_rows": Key(16, "prompts prefilled together", at_least(1)),
        "decode_steps": Key(1, "tokens decoded per host round trip", at_least(1)),
        "page_size": Key(16, "tokens of one page of the JAX engine's key/value cache", at_least(1)),
        "pages": Key(0, "pages of that cache (0: for all slots at max_len); requests without one wait", at_least(0)),
        "prefix_reuse": Key(True, "requests share full pages of equal beginnings; never across versions"),
        "deterministic": Key(False, "one compiled size of each program: a rerun samples the same bits, more slowly"),
        "on_update": Key("reprefill", "running requests at a weight update", one_of("reprefill", "keep_kv", "wait")),
        "paused_at_once": Key(0, "servers paused at once for an update (0: half of the fleet, but one)", at_least(0)),
        "request_timeout": Key(120.0, "longest generation request, seconds", above(0)),
        "platform": Key("", "JAX platform of the sampler; empty: JAX's own choice", one_of("", "cpu", "cuda", "tpu")),
        "gpu_memory": Key(0.0, "share of each GPU's memory that a server takes (0: JAX's own choice, 3/4)", share),
        "dtype": Key("bfloat16", "dtype the sampler computes in", one_of("bfloat16", "float32")),
        "head_dtype": Key(
            "float32",
            "dtype of vLLM's logits (model: sampler.dtype); those of the trainer and of the JAX sampler are float32",
            one_of("float32", "model"),
        ),
    },
    "weights": {
        "dtype": Key("bfloat16", "dtype of published weights", one_of("bfloat16", "float32")),
        "deltas": Key(True, "publish what changed, where that is fewer bytes (bfloat16, no LoRA)"),
        "keep": Key(10, "published versions kept on disk, and those that the oldest needs", at_least(2)),
        "transport": Key(
            "folder",
            "how versions reach samplers: through a folder that all see, or from the trainer and from each other "
            "over HTTP",
            one_of("folder", "http"),
        ),
        "address": Key("", "where samplers find the trainer's versions (http); empty: chosen at start", http_address),
        "cache": Key(
            "", "folder on each sampler's own disk for three versions (http); empty: the system's temporary folder"
        ),
    },
    "checkpoint": {
        "every": Key(50, "RL steps between checkpoints (0: only at the end)", at_least(0)),
        "keep": Key(2, "newest checkpoints kept", at_least(1)),
        "keep_every": Key(0, "checkpoints kept besides: those of steps that this divides (0: none)", at_least(0)),
    },
    "export": {
        "enabled": Key(True, "write a Hugging Face folder when the run ends"),
        "lora": Key(
            "merged",
            "of a LoRA run: the whole model with its adapters merged, or a PEFT adapter",
            one_of("merged", "adapter"),
        ),
        "dtype": Key("bfloat16", "dtype of exported weights", one_of("bfloat16", "float32")),
    },
    "guard": {
        "enabled": Key(True, "end a run whose trainer and sampler disagree about log-probabilities"),
        "every": Key(10, "RL steps between two checks, the first before the first step", at_least(1)),
        "max_error": Key(
            0.0,
            "largest mean difference over tokens of the trainer's own version, of which none counts for more than 1, "
            "nats (0: 0.001 where all compute and store float32, else 0.05)",
            at_least(0.0),
        ),
    },
    "plan": {
        "member_share": Key(1.0, "share of a row's tokens that have a loss", between(0.0, 1.0)),
        "sampler_tokens_per_second": Key(2000.0, "what one sampler GPU makes with enough requests, tokens/s", above(0)),
        "request_tokens_per_second": Key(60.0, "what one request gets at most, tokens/s", above(0)),
        "response_mean": Key(0.0, "mean length of an answer, tokens (0: a quarter of max_new_tokens)", at_least(0.0)),
        "response_p95": Key(0.0, "length that 95% of answers stay below, tokens (0: 3 x the mean)", at_least(0.0)),
    },
    "monitor": {
        "tensorboard": Key(False, "also write every metric for TensorBoard, in <run>/tensorboard", tensorboard),
    },
    "bench": {
        "steps": Key(10, "steps that `launch bench` measures", at_least(1)),
        "warmup_steps": Key(2, "steps before them", at_least(1)),
        "microbatches": Key(0, "microbatches of a step (0: the largest of trainer.microbatch_buckets)", at_least(0)),
        "rows": Key(0, "rows of a microbatch (0: trainer.rows)", at_least(0)),
        "length": Key(0, "tokens of a row (0: the largest of trainer.seq_buckets)", at_least(0)),
        "segment": Key(0, "mean length of a made-up sample, tokens (0: a quarter of a row)", segment_length),
    },
    "launch": {
        "threads": Key(0, "CPU threads of each JAX process (0: JAX's own choice)", at_least(0)),
        "start_timeout": Key(300.0, "longest start of one role, seconds", above(0)),
        "stop_timeout": Key(120.0, "longest orderly end of one role after Ctrl-C, seconds", above(0)),
        "heartbeat_timeout": Key(30.0, "a role without a sign of life for so long is killed, seconds", above(2)),
        "progress_timeout": Key(600.0, "a role that stands still for so long starts again, seconds", above(0)),
        "chosen": Key((), "addresses that the launcher filled in for this start; free again at the next"),
    },
}


def walk(schema: dict[str, Any] = SCHEMA, prefix: str = "") -> Iterator[tuple[str, Key]]:
    """Yields (dotted name, Key) for every key, in order."""
    for name, node in schema.items():
        if isinstance(node, Key):
            yield prefix + name, node
        else:
            yield from walk(node, f"{prefix}{name}.")


def default_config() -> ConfigDict:
    """The whole configuration with every default; unknown keys raise on assignment."""

    def build(schema: dict[str, Any]) -> dict[str, Any]:
        return {k: v.default if isinstance(v, Key) else build(v) for k, v in schema.items()}

    return ConfigDict(build(SCHEMA), convert_dict=True).lock()


def get(config: ConfigDict, dotted: str) -> Any:
    """The value under a dotted name."""
    for part in dotted.split("."):
        config = config[part]
    return config


def validate(config: ConfigDict) -> list[str]:
    """One line per problem of a resolved config: key, value, and what would be right; empty when it is fine."""
    problems = []
    for name, key in walk():
        value = get(config, name)
        right = key.check(value) if key.check else None
        if right:
            problems.append(f"{name}={value!r}: must be {right}")
    return problems or config_rules.cross_key_problems(config)


def to_plain(value: Any) -> Any:
    """ConfigDicts as dicts and tuples as lists: what JSON can hold."""
    if isinstance(value, (ConfigDict, dict)):
        return {k: to_plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_plain(v) for v in value]
    return value


def from_plain(plain: dict[str, Any]) -> ConfigDict:
    """The inverse of :func:`to_plain` over :func:`default_config`; raises KeyError on an unknown key."""

    def tuples(value: Any) -> Any:
        return tuple(tuples(v) for v in value) if isinstance(value, list) else value

    def merge(into: ConfigDict, values: dict[str, Any]) -> None:
        for k, v in values.items():
            if isinstance(into[k], ConfigDict):
                merge(into[k], v)
            else:
                into[k] = tuples(v)

    config = default_config()
    merge(config, plain)
    return config


__all__ = [
    "SCHEMA",
    "Key",
    "config_dict",
    "default_config",
    "env",
    "from_plain",
    "get",
    "to_plain",
    "validate",
    "walk",
]


def makes_deltas(config: ConfigDict) -> bool:
    """Whether versions are published as what changed, for which a trainer keeps the last one on its devices."""
    weights = config.weights
    return bool(weights.deltas and weights.dtype == "bfloat16" and not config.lora.rank and config.trainer.max_steps)
