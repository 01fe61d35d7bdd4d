"""Runs in the oracle environment (PyTorch): token log-probabilities, entropy and their gradients by autograd.

python logprobs_worker.py FOLDER: in.npz has ``hidden`` [T, D] and ``kernel`` [D, V] float32, ``targets`` int64 [T],
``temperature``, and ``d_logprobs`` and ``d_entropy`` float32 [T]. out.npz gets ``logprobs``, ``entropy``, and
``d_hidden`` and ``d_kernel``, the gradients of the sum of both outputs times theirs.
"""

import sys
from pathlib import Path

import numpy as np
import torch

folder = Path(sys.argv[1])
data = {name: torch.from_numpy(value) for name, value in np.load(folder / "in.npz").items()}
hidden, kernel = data["hidden"].requires_grad_(), data["kernel"].requires_grad_()
policy = torch.distributions.Categorical(logits=hidden @ kernel / data["temperature"][:, None])
logprobs, entropy = policy.log_prob(data["targets"]), policy.entropy()
(logprobs @ data["d_logprobs"] + entropy @ data["d_entropy"]).backward()
out = {"logprobs": logprobs, "entropy": entropy, "d_hidden": hidden.grad, "d_kernel": kernel.grad}
np.savez(folder / "out.npz", **{name: value.detach().numpy() for name, value in out.items()})
