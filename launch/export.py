"""``python -m launch export``: a run's checkpoint as a Hugging Face folder that transformers and vLLM load."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from intellect_jax.bridge.checkpoint import Checkpoints
from intellect_jax.bridge.shape import model_config
from intellect_jax.errors import UserError
from intellect_jax.models.lora_shape import Lora
from intellect_jax.parallel.mesh import spread
from intellect_jax.trainer.setup import abstract_trained, export_policy, initial_params, make_policy


def main(config: ConfigDict, run_dir: Path, out_dir: Path, checkpoint: str = "") -> int:
    """Writes ``out_dir`` from the checkpoint of step ``checkpoint`` (empty: the newest whole one); returns 0.

    A run that is going on is not disturbed. Raises UserError when there is no such checkpoint.
    """
    checkpoints = Checkpoints(run_dir / "checkpoints", read_only=True)
    step = _step(checkpoints.steps(), checkpoint, run_dir)
    cfg = model_config(config, run_dir)
    mesh, lora = spread(cfg.hidden_size), Lora.from_config(config.lora)
    restored = checkpoints.restore({"params": abstract_trained(cfg, lora, mesh)}, partial=True, step=step)
    checkpoints.close()
    if restored is None:
        raise UserError(f"{run_dir} has no checkpoint to export")
    adapter = lora is not None and config.export.lora == "adapter"
    base = initial_params(config, cfg, mesh, frozen=True) if lora and not adapter else None
    policy = make_policy(config, cfg, restored.state["params"], base)
    export_policy(config, policy, out_dir, run_dir / "tokenizer")
    print(f"step {restored.step} of {run_dir} as {'adapter' if adapter else config.export.dtype} in {out_dir}")
    return 0


def _step(saved: list[int], asked: str, run_dir: Path) -> int | None:
    if not asked:
        return None
    if not asked.isdecimal() or int(asked) not in saved:
        raise UserError(f"--checkpoint={asked}: {run_dir} has checkpoints of steps {saved}")
    return int(asked)
