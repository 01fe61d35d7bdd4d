"""Runs in the oracle environment (PyTorch, transformers, peft): what an adapter folder does to a base folder there.

python peft_worker.py FOLDER...: each holds ``model/``, ``adapter/``, ``merged/`` and in.npz with ``tokens`` and
``targets`` int64 [B, S]. out.npz gets ``base``, ``adapted`` and ``merged`` logits float32 [B, S, V]: of the base, with
the adapter, and of the merged folder; ``loss``, the mean cross-entropy with the adapter; and ``grad/<name>`` of every
factor under its name in the adapter folder.
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from peft.utils import load_peft_weights
from transformers import AutoModelForCausalLM


def load(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def run(folder: Path) -> None:
    data = {name: torch.from_numpy(value) for name, value in np.load(folder / "in.npz").items()}
    base = load(folder / "model")
    with torch.no_grad():
        out = {"base": base(data["tokens"]).logits, "merged": load(folder / "merged")(data["tokens"]).logits}
    model = PeftModel.from_pretrained(base, folder / "adapter", is_trainable=True).eval()
    check_all_used(model, folder / "adapter")
    logits = model(data["tokens"]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), data["targets"].flatten())
    loss.backward()
    factors = {n.replace(".default", ""): p for n, p in model.named_parameters() if ".lora_" in n}
    gradients = {f"grad/{name}": p.grad for name, p in factors.items()}
    out |= {"adapted": logits.detach(), "loss": loss.detach(), **gradients}
    np.savez(folder / "out.npz", **{name: value.numpy() for name, value in out.items()})


def check_all_used(model: torch.nn.Module, adapter: Path) -> None:
    """Ends the process unless the model's factors are exactly those of the folder."""
    stored = load_peft_weights(adapter, device="cpu")
    mine = {n.replace(".default", ""): p for n, p in model.named_parameters() if ".lora_" in n}
    if stored.keys() != mine.keys():
        raise SystemExit(f"only in one of folder and model: {sorted(stored.keys() ^ mine.keys())[:5]}")
    for name, tensor in stored.items():
        if not torch.equal(tensor, mine[name].detach()):
            raise SystemExit(f"{name} was not loaded")


warnings.simplefilter("error", RuntimeWarning)  # of targets that match nothing
for name in sys.argv[1:]:
    run(Path(name))
