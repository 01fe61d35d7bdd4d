"""Runs in the oracle environment: the step of transformers and PyTorch, a side of the race (see sides.py).

python torch_peer.py WORK EXPERTS ATTENTION COMPILE(0|1): WORK has ``model/`` (a Hugging Face folder), ``batch.npz``
(streams [M, R, S]) and ``work.json``. Answers ``steps N`` on stdin with a JSON line on stdout.

The compute dtype's weights are a copy of float32 masters, to which each microbatch's gradients are added; in float32
they are the masters. Log-probabilities are computed of member tokens only.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM


class Step:
    def __init__(self, work: Path, experts: str, attention: str, compiled: bool):
        self.hyper = json.loads((work / "work.json").read_text())
        self.device = "cuda" if self.hyper["platform"] == "cuda" else "cpu"
        dtype = getattr(torch, self.hyper["dtype"])
        model = AutoModelForCausalLM.from_pretrained(
            work / "model", dtype=torch.float32, experts_implementation=experts, attn_implementation=attention
        )
        self.mixed = dtype != torch.float32
        self.model = model.to(self.device).train()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.masters = [p.detach().clone() for p in trained] if self.mixed else trained
        if self.mixed:
            to_dtype(self.model, dtype)
        self.weights = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.masters,
            lr=self.hyper["learning_rate"],
            betas=(self.hyper["b1"], self.hyper["b2"]),
            eps=self.hyper["eps"],
            weight_decay=0.0,
            fused=True,
        )
        self.micros = [self.microbatch(dict(arrays)) for arrays in microbatches(work / "batch.npz")]
        self.count = sum(len(micro["targets"]) for micro in self.micros)
        self.loss = torch.compile(self.plain_loss) if compiled else self.plain_loss

    def microbatch(self, arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        rows, columns = np.nonzero(arrays["loss_mask"])
        made = {
            "tokens": arrays["tokens"].astype(np.int64),
            "positions": arrays["positions"].astype(np.int64),
            "before": rows * arrays["tokens"].shape[1] + columns - 1,  # token t is predicted from position t-1
            "targets": arrays["tokens"][rows, columns].astype(np.int64),
            "sampler_logprobs": arrays["sampler_logprobs"][rows, columns],
            "advantages": arrays["advantages"][rows, columns],
        }
        return {name: torch.from_numpy(np.ascontiguousarray(array)).to(self.device) for name, array in made.items()}

    def plain_loss(self, micro: dict[str, torch.Tensor]) -> torch.Tensor:
        """Sum over member tokens of -r A, r = pi / pi_sampler, 0 where r leaves [alpha, beta]; over their count."""
        out = self.model.model(input_ids=micro["tokens"], position_ids=micro["positions"], use_cache=False)
        hidden = out.last_hidden_state.flatten(0, 1)[micro["before"]]
        logits = self.model.lm_head(hidden).float()
        logprobs = -torch.nn.functional.cross_entropy(logits, micro["targets"], reduction="none")
        log_ratio = logprobs - micro["sampler_logprobs"]
        ratio = log_ratio.detach().exp()
        keep = (ratio >= self.hyper["alpha"]) & (ratio <= self.hyper["beta"])
        return -(torch.where(keep, log_ratio, 0.0).exp() * micro["advantages"] * keep).sum() / self.count

    def __call__(self) -> tuple[float, float]:
        """(loss, gradient norm) of one whole step."""
        total = torch.zeros((), device=self.device)
        for micro in self.micros:
            loss = self.loss(micro)
            loss.backward()
            total += loss.detach()
            if self.mixed:
                self.accumulate()
        norm = torch.nn.utils.clip_grad_norm_(self.masters, self.hyper["clip_norm"], foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.mixed:
            with torch.no_grad():
                torch._foreach_copy_(self.weights, self.masters)
        return float(total), float(norm)

    @torch.no_grad()
    def accumulate(self) -> None:
        for master, weight in zip(self.masters, self.weights, strict=True):
            if master.grad is None:
                master.grad = weight.grad.float()
            else:
                master.grad.add_(weight.grad)
            weight.grad = None


def to_dtype(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Weights in the compute dtype; the router stays float32, as the model itself computes it."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def microbatches(file: Path):
    arrays = dict(np.load(file))
    for i in range(arrays["tokens"].shape[0]):
        yield {name: array[i] for name, array in arrays.items()}


def peak_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    work, experts, attention, compiled = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4] == "1"
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    step = Step(work, experts, attention, compiled)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps({"versions": versions}), flush=True)
    for line in sys.stdin:
        answer: dict[str, list[float]] = {"seconds": [], "losses": [], "norms": []}
        for _ in range(int(line.split()[1])):
            start = time.perf_counter()
            loss, norm = step()
            answer["seconds"].append(time.perf_counter() - start)
            answer["losses"].append(loss)
            answer["norms"].append(norm)
        print(json.dumps({**answer, "peak_bytes": peak_bytes(step.device)}), flush=True)


main()
