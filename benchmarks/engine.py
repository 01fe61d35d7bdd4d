"""Tokens per second of the JAX engine at several numbers of concurrent requests, as JSON lines.

    python benchmarks/engine.py [--seconds=3] [--slots=64] [--decode_steps=1] [--dtype=float32]

The policy is the demo's (hidden 128, 4 layers, 16 experts, 2 of them a token, vocabulary 104) with fresh weights. Each
client sends its next request when its last one is answered; 16 successive requests share a prompt of 20 tokens, as the
rollouts of a group do; answers have 8 to 28 tokens; routed experts are returned. The engine alone, without HTTP.
"""

from __future__ import annotations

import argparse
import json
import random
import threading
import time

from intellect_jax.config import default_config
from intellect_jax.models.config import ModelConfig
from intellect_jax.models.transformer import init_params
from intellect_jax.sampler import loading
from intellect_jax.sampler.engine import Engine
from intellect_jax.sampler.main import make_state
from intellect_jax.sampler.requests import Request, SamplingParams
from intellect_jax.types import Version


class Clients:
    """A closed loop: every finished request is followed by another one, until told to stop."""

    def __init__(self, engine: Engine, vocab_size: int):
        self.engine, self.vocab_size = engine, vocab_size
        self.random = random.Random(0)
        self.sent = 0
        self.stopping = False
        self.idle = threading.Semaphore(0)

    def run(self, count: int, seconds: float) -> float:
        """Tokens per second with ``count`` requests in flight."""
        self.stopping = False
        for _ in range(count):
            self._send()
        time.sleep(seconds / 4)  # a steady state first
        before, started = self.engine.stats().generated, time.perf_counter()
        time.sleep(seconds)
        rate = (self.engine.stats().generated - before) / (time.perf_counter() - started)
        self.stopping = True
        for _ in range(count):
            assert self.idle.acquire(timeout=60), "the engine stalled"
        return rate

    def _send(self) -> None:
        if self.sent % 16 == 0:
            self.prompt = [self.random.randrange(self.vocab_size) for _ in range(20)]
        self.sent += 1
        params = SamplingParams(self.random.randint(8, 28), seed=self.sent, return_routed_experts=True)
        request = Request(self.prompt, params)
        request.future.add_done_callback(lambda _: self._finished())
        self.engine.submit(request)

    def _finished(self) -> None:
        if self.stopping:
            self.idle.release()
        else:
            self._send()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--decode_steps", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    config = default_config()
    chosen = {"slots": options.slots, "decode_steps": options.decode_steps, "dtype": options.dtype}
    config.sampler.update({**chosen, "prefill_rows": 8})
    model = ModelConfig.from_config(config.model, vocab_size=104)
    state = make_state(config, model, tokenizer=None)
    state.engine.start()
    assert state.engine.ready.wait(600), state.engine.failure
    state.engine.install(loading.place(init_params(model, seed=0), options.dtype), Version(0, 0)).result(60)
    state.compilations.warm()  # making the parameters compiled too
    clients = Clients(state.engine, model.vocab_size)
    for count in (1, 16, options.slots, 2 * options.slots):
        rate = clients.run(count, options.seconds)
        print(json.dumps({"concurrent": count, "tokens_per_second": round(rate), **vars(options)}), flush=True)
    assert state.compilations.after_warmup == 0
    state.engine.stop(10)


if __name__ == "__main__":
    main()
