"""How long our sampler's engine stands still for a version that it has on the device already."""

from __future__ import annotations

import time
from functools import partial
from statistics import median

import jax

from intellect_jax.config import default_config
from intellect_jax.models.config import ModelConfig
from intellect_jax.sampler import loading
from intellect_jax.sampler.engine import Engine
from intellect_jax.sampler.programs import Programs
from intellect_jax.sampler.requests import Request, SamplingParams
from intellect_jax.sampler.shapes import Shapes
from intellect_jax.transport.mirror import Mirror
from intellect_jax.transport.weights import WeightStore

PROMPT, ANSWER = 16, 48  # tokens
_COMPILING, _INSTALLING = 600.0, 300.0  # seconds that they may take


class Sampler:
    """An engine in bfloat16 with ``count`` requests that run on and on, each of them computed again at an update."""

    def __init__(self, model: ModelConfig, count: int):
        sampler = default_config().sampler
        sampler.update({"slots": count, "prefill_rows": count, "max_len": PROMPT + ANSWER, "dtype": "bfloat16"})
        sampler.update({"prefill_buckets": (2 * PROMPT, PROMPT + ANSWER), "decode_steps": 1})
        self.model, self.count = model, count
        warm_params = partial(loading.zeros, model, sampler.dtype)
        self.engine = Engine(Programs(model, Shapes.from_config(sampler)), "reprefill", warm_params)
        self.engine.start()
        self.engine.ready.wait(_COMPILING)

    def install(self, mirror: Mirror) -> float:
        """Seconds from the request to stop to the answer that it goes on; what runs has a few tokens by then."""
        assert mirror.version is not None
        params = jax.block_until_ready(loading.placed(mirror.tensors, self.model, "bfloat16"))
        running = [Request([3 + i] * PROMPT, SamplingParams(ANSWER, seed=i)) for i in range(self.count)]
        if self.engine.stats().version is not None:
            for request in running:
                self.engine.submit(request)
            while min(len(request.token_ids) for request in running) < 2:
                time.sleep(0.01)
        begun = time.perf_counter()
        self.engine.pause("keep").result(_INSTALLING)
        self.engine.install(params, mirror.version).result(_INSTALLING)
        self.engine.resume().result(_INSTALLING)
        took = time.perf_counter() - begun
        for request in running:
            request.future.cancel()
        return took


def pauses(store: WeightStore, model: ModelConfig, count: int, repeats: int = 3) -> dict[str, float]:
    """Seconds for the last delta of the store, and for the full version after it: the median of ``repeats``."""
    *_, before, delta, full = store.versions()
    sampler = Sampler(model, count)
    found: dict[str, list[float]] = {"delta": [], "full": []}
    for _ in range(repeats):
        mirror = Mirror()
        for kind, version in (("", before), ("delta", delta), ("full", full)):
            mirror.advance(store.folder, version)
            took = sampler.install(mirror)
            if kind:
                found[kind].append(took)
    assert sampler.engine.stop(60)
    return {kind: median(times) for kind, times in found.items()}
