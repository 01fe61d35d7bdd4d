"""An origin and stand-in samplers, each a process of its own."""

import json
import selectors
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import ml_dtypes
import numpy as np

from intellect_jax.transport import changes
from intellect_jax.transport.deltas import Changed
from intellect_jax.transport.relay.origin import Origin
from intellect_jax.transport.relay.server import Server
from intellect_jax.types import Version

ROOT = Path(__file__).parents[3]
BF16 = np.dtype(ml_dtypes.bfloat16)


def policy(megabytes, seed=0):
    """Tensors of about so many megabytes, of several shapes."""
    rng = np.random.default_rng(seed)
    rows = int(megabytes * 1e6 / (8 * 512 * 2))
    tensors = {f"layer.{i}": rng.normal(size=(rows, 512)).astype(BF16) for i in range(8)}
    return {**tensors, "norm": rng.normal(size=(512,)).astype(np.float32), "empty": np.zeros((0, 3), np.float32)}


def moved(tensors, seed, share=0.03):
    """The same with a few elements changed, and what changed."""
    rng, out = np.random.default_rng(seed), {}
    for name, old in tensors.items():
        bits = changes.as_bits(old.copy())
        bits += (rng.random(bits.size) < share).astype(bits.dtype)
        out[name] = bits.view(old.dtype).reshape(old.shape)
    return out, [Changed(n, out[n].dtype, out[n].shape, changes.find(tensors[n], out[n])) for n in out]


def nbytes(folder):
    """Of all files of a version."""
    return sum(path.stat().st_size for path in folder.iterdir())


@contextmanager
def serving(store, **arguments):
    """An origin on a free port of this machine: its server and its URL."""
    found = Server(Origin(store), "127.0.0.1", 0, **arguments)
    try:
        yield found, f"http://127.0.0.1:{found.port}"
    finally:
        found.close()


def sent(origin, version=None):
    """Bytes of all answers so far, or of those about one version."""
    prefix = f"/v{version.lineage}-{version.number}" if version else "/"
    return sum(n for path, n in origin.sent.items() if path == prefix or path.startswith(prefix + "/" * bool(version)))


class Sampler:
    """One stand-in; ``ask`` and ``answer`` may be apart, so that many work at once."""

    def __init__(self, url, cache):
        self.log = Path(f"{cache}.log")
        command = [sys.executable, "-m", "tests.transport.relay.worker", url, str(cache)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, bufsize=1
            )

    def ready(self):
        assert self._line(60) == "ready", self.log.read_text()
        return self

    def ask(self, version: Version):
        self.process.stdin.write(f"v{version.lineage}-{version.number}\n")

    def answer(self, timeout=120):
        return json.loads(self._line(timeout))

    def _line(self, timeout):
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            assert selector.select(timeout), f"no answer in {timeout} s: {self.log.read_text()[-3000:]}"
        return self.process.stdout.readline().strip()

    def kill(self):
        self.process.kill()
        self.process.wait(10)

    def end(self):
        self.process.stdin.close()
        try:
            self.process.wait(10)
        finally:
            self.process.stdout.close()
            self.kill()


@contextmanager
def samplers(url, folder, count):
    """So many, ready to be asked."""
    found = [Sampler(url, folder / f"sampler-{i}") for i in range(count)]
    try:
        yield [sampler.ready() for sampler in found]
    finally:
        for sampler in found:
            sampler.end()


def until(condition, timeout=20):
    """Raises AssertionError unless it comes true in so many seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
