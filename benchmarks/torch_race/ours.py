"""Our step as a side of the race (see sides.py).

python ours.py WORK: WORK has ``config.json`` (of a run) and ``batch.npz`` (streams [M, R, S]). Answers ``steps N`` on
stdin with a JSON line on stdout.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from launch.heap import keep_memory

if os.environ.get("JAX_PLATFORMS") == "cpu":
    keep_memory()  # as a run's trainer does, before anything makes threads

import jax
import jaxlib
import numpy as np

from intellect_jax.config import from_plain
from intellect_jax.monitor.compilations import CompilationCounter
from intellect_jax.trainer import setup
from intellect_jax.types import PackedBatch
from launch.bench.measure import matmul_rate, peak_bytes
from launch.bench.rates import datasheet


def main(work: Path) -> None:
    compilations = CompilationCounter()
    config = from_plain(json.loads((work / "config.json").read_text()))
    trainer = setup.create(config, work)
    state = trainer.init_state()
    batch = PackedBatch(1, dict(np.load(work / "batch.npz")))
    rate = config.trainer.optimizer.learning_rate
    device, dtype = jax.devices()[0].device_kind, config.model.compute_dtype
    about = {
        "versions": {"jax": jax.__version__, "jaxlib": jaxlib.__version__},
        "device": device,
        "measured_matmul_flops_per_s": matmul_rate(dtype),
        "datasheet_flops_per_s": datasheet(device, dtype),
    }
    print(json.dumps(about), flush=True)
    warm = False
    for line in sys.stdin:
        answer: dict[str, list[float]] = {"seconds": [], "losses": [], "norms": []}
        for _ in range(int(line.split()[1])):
            start = time.perf_counter()
            state, sums = trainer.step(state, batch, rate)
            answer["seconds"].append(time.perf_counter() - start)
            answer["losses"].append(sums["rl"])
            answer["norms"].append(sums["grad_norm"])
        recompiled = compilations.after_warmup
        if not warm:
            compilations.warm()
            warm = True
        print(json.dumps({**answer, "peak_bytes": peak_bytes(), "recompilations": recompiled}), flush=True)


main(Path(sys.argv[1]))
