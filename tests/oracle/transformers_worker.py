"""Runs in the oracle environment (PyTorch, transformers): logits and greedy continuations of a model folder.

python transformers_worker.py FOLDER...: each holds ``model/`` and in.npz with ``tokens`` int64 [B, S] and
``new_tokens``, and gets out.npz with ``logits`` float32 [B, S, V] and ``greedy`` int64 [B, new_tokens].
"""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM


def load(folder: Path) -> torch.nn.Module:
    """The model in float32; ends the process when it is not exactly what the folder holds."""
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    wrong = {kind: sorted(report[kind]) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    # A width of zero has no bytes to store.
    wrong["missing_keys"] = [n for n in wrong["missing_keys"] if model.get_parameter(n).numel()]
    if any(wrong.values()):
        raise SystemExit(f"transformers did not load exactly what was exported: {wrong}")
    return model.eval()


def run(folder: Path) -> None:
    model = load(folder / "model")
    data = np.load(folder / "in.npz")
    tokens = torch.from_numpy(data["tokens"])
    with torch.no_grad():
        logits = model(tokens).logits
        greedy = tokens
        for _ in range(int(data["new_tokens"])):
            greedy = torch.cat([greedy, model(greedy).logits[:, -1].argmax(-1, keepdim=True)], 1)
    np.savez(folder / "out.npz", logits=logits.numpy(), greedy=greedy[:, tokens.shape[1] :].numpy())


for name in sys.argv[1:]:
    run(Path(name))
