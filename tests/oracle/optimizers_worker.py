"""Runs in the oracle environment (PyTorch): a few steps of torch.optim's AdamW and Muon on given gradients.

python optimizers_worker.py IN.npz OUT.npz: IN holds ``w`` [r, c], ``g`` [steps, r, c] and scalars ``rate``, ``decay``,
``b1``, ``b2``, ``eps``, ``momentum``. OUT gets the parameter after each step, [steps, r, c]: ``adamw``, ``muon``,
``muon_plain`` (not Nesterov), and ``muon_float32``, whose iterations PyTorch would compute in bfloat16.
"""

import sys

import numpy as np
import torch

data = {name: torch.from_numpy(value) for name, value in np.load(sys.argv[1]).items()}
RATE, DECAY, B1, B2, EPS, MOMENTUM = (float(data[name]) for name in ("rate", "decay", "b1", "b2", "eps", "momentum"))


def trajectory(make) -> np.ndarray:
    parameter = torch.nn.Parameter(data["w"].clone())
    optimizer = make([parameter])
    after = []
    for gradient in data["g"]:
        parameter.grad = gradient.clone()
        optimizer.step()
        after.append(parameter.detach().numpy().copy())
    return np.stack(after)


def muon(nesterov: bool):
    return lambda parameters: torch.optim.Muon(
        parameters, RATE, DECAY, MOMENTUM, nesterov=nesterov, adjust_lr_fn="match_rms_adamw"
    )


out = {
    "adamw": trajectory(lambda p: torch.optim.AdamW(p, RATE, (B1, B2), EPS, DECAY)),
    "muon": trajectory(muon(True)),
    "muon_plain": trajectory(muon(False)),
}
torch.Tensor.bfloat16 = lambda self: self.clone()
out["muon_float32"] = trajectory(muon(True))
np.savez(sys.argv[2], **out)
