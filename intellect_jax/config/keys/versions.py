"""What becomes of weights: published versions, checkpoints, the export."""

from __future__ import annotations

from intellect_jax.config.checks import at_least, http_address, one_of
from intellect_jax.config.key import Key, Section

WEIGHTS: Section = {
    "dtype": Key("bfloat16", "dtype of published weights", one_of("bfloat16", "float32")),
    "deltas": Key(True, "publish what changed, where that is fewer bytes (bfloat16, no LoRA)"),
    "keep": Key(10, "published versions kept on disk, and those that the oldest needs", at_least(2)),
    "keep_gib": Key(
        0.0,
        "disk that published versions may take, GiB: beyond it the oldest go, but never the newest "
        "orchestrator.max_off_policy_steps + 2 and those that they need (0: no bound)",
        at_least(0.0),
    ),
    "transport": Key(
        "folder",
        "how versions reach samplers: through a folder that all see; over HTTP, from the trainer and from each other; "
        "or by NCCL, from the trainer's one GPU to vLLM's",
        one_of("folder", "http", "nccl"),
    ),
    "address": Key("", "where samplers find the trainer's versions (http, nccl); empty: chosen at start", http_address),
    "cache": Key(
        "", "folder on each sampler's own disk for three versions (http); empty: the system's temporary folder"
    ),
}

CHECKPOINT: Section = {
    "every": Key(50, "RL steps between checkpoints (0: only at the end)", at_least(0)),
    "keep": Key(2, "newest checkpoints kept", at_least(1)),
    "keep_every": Key(0, "checkpoints kept besides: those of steps that this divides (0: none)", at_least(0)),
}

EXPORT: Section = {
    "enabled": Key(True, "write a Hugging Face folder when the run ends"),
    "lora": Key(
        "merged",
        "of a LoRA run: the whole model with its adapters merged, or a PEFT adapter",
        one_of("merged", "adapter"),
    ),
    "dtype": Key("bfloat16", "dtype of exported weights", one_of("bfloat16", "float32")),
}
