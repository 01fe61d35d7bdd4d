"""Imports a folder onto a mesh of fake devices and exports it again; run by test_devices.py in one or two processes.

python folder_run.py IN OUT PROCESSES INDEX PORT [axis=size]...: prints the bytes that this process read and the
    pieces that it fetched.
"""

import json
import sys

import jax
from jax.experimental import multihost_utils

from intellect_jax.bridge import load_pretrained, save_pretrained, streams
from intellect_jax.bridge.source import Source
from intellect_jax.config import default_config
from intellect_jax.parallel.axes import AXES
from intellect_jax.parallel.mesh import make_mesh


def main(folder: str, out: str, processes: int, index: int, port: str, axes: dict[str, int]) -> None:
    if processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, index, initialization_timeout=60)
    parallel = default_config().parallel
    parallel.update(dict.fromkeys(AXES, 1) | axes)
    released: list[int] = []
    release = Source.release
    Source.release = lambda self, view: (released.append(view.nbytes), release(self, view))[1]
    policy = load_pretrained(folder, make_mesh(parallel), dtype="bfloat16")
    read = sum(released)
    fetched: list[None] = []
    make = streams._slicer
    streams._slicer = lambda *key: lambda *piece: (fetched.append(None), make(*key)(*piece))[1]
    save_pretrained(policy, out, max_shard_bytes=20_000)
    print(json.dumps({"read": read, "fetched": len(fetched), "devices": len(jax.devices())}))
    if processes > 1:
        multihost_utils.sync_global_devices("done")


if __name__ == "__main__":
    counts = map(int, sys.argv[3:5])
    main(*sys.argv[1:3], *counts, sys.argv[5], {k: int(v) for k, v in (a.split("=") for a in sys.argv[6:])})
