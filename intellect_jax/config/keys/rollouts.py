"""Where rollouts come from: the orchestrator, environments, evaluation and the fleet of samplers."""

from __future__ import annotations

from intellect_jax.config.checks import (
    above,
    at_least,
    between,
    http_addresses,
    increasing,
    one_of,
    share,
    tcp_address,
    texts,
)
from intellect_jax.config.key import Key, Section

ORCHESTRATOR: Section = {
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
}

EVAL: Section = {
    "every": Key(0, "RL steps between evaluations (0: only before and after)", at_least(0)),
    "prompts": Key(256, "held-out prompts of one evaluation", at_least(1)),
    "temperature": Key(0.0, "sampling temperature (0: greedy)", at_least(0.0)),
    "only": Key(False, "evaluate once and end, without a trainer (set by `launch eval`)"),
    "weights": Key("", "folder of published versions that eval.only evaluates; empty: what the fleet serves"),
}

ENVIRONMENTS: Section = {
    "workers": Key(1, "environment worker processes", at_least(1)),
    "concurrency": Key(32, "calls that one worker runs at once", at_least(1)),
    "timeout": Key(60.0, "longest environment call, seconds", above(0)),
    "address": Key("", "where workers find the orchestrator; empty: chosen at start", tcp_address),
}

SAMPLER: Section = {
    "backend": Key("jax", "rollout engine", one_of("jax", "vllm")),
    "python": Key("", "interpreter of the environment that has vLLM: .venv-vllm/bin/python after `make vllm`"),
    "arguments": Key((), "further command line arguments of vLLM, e.g. ('--tensor-parallel-size=8',)", texts),
    "kv_cache_gib": Key(1, "memory of vLLM's KV cache on a CPU, GiB", at_least(1)),
    "num_servers": Key(1, "servers that the launcher starts", at_least(1)),
    "urls": Key((), "base URLs of the fleet; empty: chosen at start", http_addresses),
    "slots": Key(64, "requests that decode together", at_least(1)),
    "min_inflight": Key(1, "requests that a server always may have at once, however full it says it is", at_least(1)),
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
}
