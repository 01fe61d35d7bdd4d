"""The guard on a mesh of eight fake devices; run by test_guard_mesh.py in a process of its own.

Prints what a healthy batch and one from a sampler with a wrong expert come to.
"""

import json
import sys
from pathlib import Path

import jax

from intellect_jax.errors import Hopeless
from intellect_jax.trainer.guard.guard import Guard
from intellect_jax.types import Version
from tests.policies import SMALL, random_params
from tests.trainer.guard.sides import answers, batch, findings, guard, logprobs, trainer, with_wrong_expert


def main(folder: str) -> None:
    now, run_dir = random_params(SMALL), Path(folder)
    on_mesh = trainer(parallel__fsdp=2, parallel__context=2, parallel__expert=2)
    made = guard(run_dir, {Version(0, 0): now}, make=lambda _: Guard(on_mesh, run_dir))
    made.prepare()
    params = jax.tree.map(lambda x, leaf: jax.device_put(x, leaf.sharding), now, on_mesh.abstract_state.params)
    healthy = made.check(params, batch(answers(), logprobs(now, answers())), Version(0, 0))
    wrong = batch(answers(), logprobs(with_wrong_expert(now, 1, 3), answers()), step=11)
    try:
        made.check(params, wrong, Version(0, 10))
    except Hopeless:
        found = findings(run_dir)["suspects"][0]
    print(json.dumps({"error": healthy["guard/error"], "devices": on_mesh.mesh.size, "first": found}))


if __name__ == "__main__":
    main(sys.argv[1])
