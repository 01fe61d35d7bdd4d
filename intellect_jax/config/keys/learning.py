"""How it trains: the RL objective, supervised steps, the trainer's batches and its optimizer."""

from __future__ import annotations

from intellect_jax.config.checks import above, at_least, between, increasing, one_of, share
from intellect_jax.config.key import Key, Section

ALGORITHM: Section = {
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
}

SFT: Section = {
    "steps": Key(0, "supervised steps before RL (0: none)", at_least(0)),
    "data": Key("", "JSONL, Parquet, or tfds:<name>/<split> with prompt/completion or messages"),
    "microbatches": Key(1, "microbatches of one supervised step", at_least(1)),
    "learning_rate": Key(1e-3, "peak learning rate", above(0)),
    "warmup_steps": Key(10, "steps of linear warm-up", at_least(0)),
    "decay_steps": Key(0, "last steps over which the rate falls linearly to 0 (0: constant)", at_least(0)),
}

TRAINER: Section = {
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
        one_of("auto", "plain", "chunked", "native", "splash", "tokamax"),
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
}
