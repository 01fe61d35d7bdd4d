"""A folder that looks like a clone of the repository after `make demo`, small, made with the real writers.

python -m tests.docs.workspace CLONE    # from the root of the repository
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from intellect_jax.models.config import ModelConfig
from tests.docs.pages import ROOT

RUN = "runs/debug_cpu-seed0"
LINKED = ("configs", "envs", "benchmarks", "docs", "evidence", "intellect_jax", "launch", "Makefile", "pyproject.toml")


def make(clone: Path) -> None:
    import jax
    import numpy as np

    from intellect_jax.bridge import Policy, save_pretrained
    from intellect_jax.bridge.checkpoint import Checkpoints
    from intellect_jax.bridge.huggingface import to_hf
    from intellect_jax.bridge.shape import model_config
    from intellect_jax.models.transformer import abstract_params
    from intellect_jax.monitor.summary import write_summary
    from intellect_jax.orchestrator.records import write_rollouts
    from intellect_jax.transport.weights import WeightStore
    from intellect_jax.types import Node, Rollout, Task, Version
    from launch import configuration, preparation, rundir

    clone.mkdir(parents=True, exist_ok=True)
    for name in LINKED:
        (clone / name).symlink_to(ROOT / name)
    (clone / ".venv-vllm" / "bin").mkdir(parents=True)
    (clone / ".venv-vllm" / "bin" / "python").symlink_to(sys.executable)  # nothing is started with it
    run_dir = clone / RUN
    config = configuration.load(ROOT / "configs" / "debug_cpu.py")
    config.run.name = run_dir.name
    preparation.prepare_tokenizer(config, run_dir)
    rundir.write_config(config, run_dir)
    cfg = model_config(config, run_dir)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_params(cfg))
    WeightStore(run_dir / "weights").publish(Version(0, 200), to_hf(params, cfg))
    checkpoints = Checkpoints(run_dir / "checkpoints")
    checkpoints.save(200, {"params": jax.device_put(params)}, {})
    checkpoints.close()
    save_pretrained(Policy(params, cfg), run_dir / "export", tokenizer=run_dir / "tokenizer")
    save_pretrained(Policy(params, cfg), clone / "base", tokenizer=run_dir / "tokenizer")
    make_lora_run(clone / "runs" / "lora", clone / "base", cfg)
    prompt = Node("user", "abc", [3, 4])
    answer = Node("assistant", "cba", [5, 6], 0, True, [-0.1, -0.2], [0, 1])
    rollout = Rollout(Task(0, "reverse_text", "train", 0), 0, 0, 1.0, [prompt, answer], 1.0)
    write_rollouts(run_dir / "rollouts", "step-000001", [rollout])
    shutil.copyfile(Path(__file__).parent / "metrics_sample.jsonl", run_dir / "metrics.jsonl")
    write_summary(run_dir)
    make_smollm2(clone, run_dir)
    (run_dir / "logs").mkdir()
    (run_dir / "logs" / "trainer.log").write_text("supervised fine-tuning done\n")


def make_lora_run(run_dir: Path, base: Path, cfg: ModelConfig) -> None:
    """What docs/lora.md starts: a run whose checkpoint holds adapters."""
    import jax

    from intellect_jax.bridge.checkpoint import Checkpoints
    from intellect_jax.models.lora import init_adapter
    from intellect_jax.models.lora_shape import TARGETS, Lora
    from launch import configuration, rundir

    config = configuration.load(ROOT / "configs" / "debug_cpu.py")
    config.run.name, config.model.path = run_dir.name, str(base)
    config.lora.rank, config.lora.targets = 8, TARGETS
    run_dir.mkdir(parents=True)
    rundir.write_config(config, run_dir)
    shutil.copytree(base.parent / RUN / "tokenizer", run_dir / "tokenizer")
    checkpoints = Checkpoints(run_dir / "checkpoints")
    checkpoints.save(120, {"params": jax.device_put(init_adapter(cfg, Lora(8, 16.0, TARGETS), 0))}, {})
    checkpoints.close()


def make_smollm2(clone: Path, run_dir: Path) -> None:
    """A llama where docs/smollm2.md has the real one, with another run's tokenizer and metrics."""
    from intellect_jax.bridge import Policy, save_pretrained
    from intellect_jax.config import default_config
    from intellect_jax.models.transformer import init_params

    model = default_config().model
    model.update({"family": "llama", "attention_bias": False, "partial_rotary_factor": 1.0})
    cfg = ModelConfig.from_config(model, 102)
    folder = clone / "models" / "SmolLM2-135M-Instruct"
    save_pretrained(Policy(init_params(cfg, 0), cfg), folder, tokenizer=run_dir / "tokenizer")
    trained = clone / "runs" / "smollm2_cpu-seed0"
    trained.mkdir()
    shutil.copyfile(run_dir / "metrics.jsonl", trained / "metrics.jsonl")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
