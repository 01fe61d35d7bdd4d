"""The real sampler, but for one expert whose weights it gets wrong when it loads a version.

    python -m tests.trainer.guard.tampered_sampler RUN_DIR [LAYER EXPERT]

LAYER counts the mixture-of-experts layers from 0. Without the two nothing is wrong.
"""

import json
import logging
import sys
from pathlib import Path

import numpy as np

from intellect_jax.config import from_plain
from intellect_jax.sampler import loading
from intellect_jax.sampler.main import main

load = loading.load


def load_wrongly(intake, manifest, *, model, dtype, layer, expert):
    params, version = load(intake, manifest, model=model, dtype=dtype)
    experts = params["moe_layers"]["moe"]["experts"]
    down = np.array(experts["down"])
    down[layer, expert] = down[layer, expert, :, ::-1]
    experts["down"] = loading.place(down, dtype)
    return params, version


if __name__ == "__main__":
    logging.basicConfig(level="INFO")
    run_dir = Path(sys.argv[1])
    if len(sys.argv) > 2:
        layer, expert = map(int, sys.argv[2:])
        loading.load = lambda *args, **kwargs: load_wrongly(*args, **kwargs, layer=layer, expert=expert)
    sys.exit(main(from_plain(json.loads((run_dir / "config.json").read_text())), run_dir, 0))
