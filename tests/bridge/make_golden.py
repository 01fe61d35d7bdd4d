"""Writes tests/bridge/golden/<config>.npz from transformers: what the fast tests hold every family to.

    python -m tests.bridge.make_golden PYTHON     # PYTHON: an interpreter with PyTorch and transformers

Each file has ``tokens`` and ``targets`` int64 [2, 8], transformers' ``logits`` float32 [2, 8, 96], and ``loss`` with a
number for each tensor's gradient: its projection on a fixed direction (see :func:`direction`).
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from intellect_jax.bridge import Policy, save_pretrained
from tests.policies import CONFIGS, random_params

FOLDER = Path(__file__).with_name("golden")
WORKER = Path(__file__).parents[1] / "oracle" / "transformers_worker.py"


def direction(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Random numbers that depend on the tensor's name alone, of unit norm."""
    noise = np.random.default_rng(list(name.encode())).normal(size=shape)
    return noise / np.linalg.norm(noise)


def main(python: str) -> None:
    rng = np.random.default_rng(5)
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for name, cfg in CONFIGS.items():
            save_pretrained(Policy(random_params(cfg), cfg), root / name / "model", dtype="float32")
            tokens, targets = rng.integers(0, cfg.vocab_size, (2, 2, 8))
            np.savez(root / name / "in.npz", tokens=tokens, targets=targets, new_tokens=0)
        subprocess.run([python, WORKER, *(root / name for name in CONFIGS)], check=True)
        for name in CONFIGS:
            out = np.load(root / name / "out.npz")
            kept = {key: value for key, value in np.load(root / name / "in.npz").items() if key != "new_tokens"}
            names = sorted(key for key in out if key.startswith("grad/"))
            along = np.array([np.vdot(out[key], direction(key, out[key].shape)) for key in names], np.float32)
            kept |= {"logits": out["logits"], "loss": out["loss"], "names": np.array(names), "along": along}
            np.savez_compressed(FOLDER / f"{name}.npz", **kept)


if __name__ == "__main__":
    main(sys.argv[1])
