"""Runs in the oracle environment (PyTorch, transformers): what a model folder computes there.

python transformers_worker.py FOLDER...: each holds ``model/`` and in.npz with

- ``tokens`` int64 [B, S] and ``new_tokens``: out.npz gets ``logits`` float32 [B, S, V] and ``greedy`` int64
  [B, new_tokens];
- optionally ``targets`` int64 [B, S]: out.npz gets ``loss``, the mean cross-entropy, and ``grad/<name>`` for each
  parameter, experts one by one as in published checkpoints;
- optionally ``mask`` int64 [B, S], 0 for padding on either side: out.npz gets ``masked``, the logits under it.
"""

import sys
from collections.abc import Iterator
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
    data = {name: torch.from_numpy(value) for name, value in np.load(folder / "in.npz").items()}
    tokens = data["tokens"]
    with torch.no_grad():
        out = {"logits": model(tokens).logits}
        greedy = tokens
        for _ in range(int(data["new_tokens"])):
            greedy = torch.cat([greedy, model(greedy).logits[:, -1].argmax(-1, keepdim=True)], 1)
        out["greedy"] = greedy[:, tokens.shape[1] :]
        if "mask" in data:
            positions = (data["mask"].cumsum(-1) - 1).clamp(min=0)
            out["masked"] = model(tokens, attention_mask=data["mask"], position_ids=positions).logits
    if "targets" in data:
        loss = torch.nn.functional.cross_entropy(model(tokens).logits.flatten(0, 1), data["targets"].flatten())
        loss.backward()
        out |= {"loss": loss.detach(), **dict(gradients(model))}
    np.savez(folder / "out.npz", **{name: value.numpy() for name, value in out.items()})


def gradients(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """("grad/<name>", gradient) under the names of published checkpoints."""
    sized = [(name, parameter) for name, parameter in model.named_parameters() if parameter.numel()]
    for name, parameter in sized:
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        prefix, kind = f"grad/{name}".rsplit(".", 1)
        for expert, part in enumerate(grad if kind in ("gate_up_proj", "down_proj") else ()):
            sides = ("gate_proj", "up_proj") if kind == "gate_up_proj" else ("down_proj",)
            for side, piece in zip(sides, part.chunk(len(sides)), strict=True):
                yield f"{prefix}.{expert}.{side}.weight", piece
        if kind not in ("gate_up_proj", "down_proj"):
            yield f"grad/{name}", grad


for name in sys.argv[1:]:
    run(Path(name))
