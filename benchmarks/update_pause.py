"""How long a server stands still for a new version, and what a version every two seconds costs in tokens.

    python -m benchmarks.update_pause [--backends=jax,vllm] [--vllm_python=.venv-vllm/bin/python] [--rounds=24]
        [--vllm_threads=1] [--every=2] [--seconds=4] [--concurrent=16] [--model=demo]
        [--out=FILE.json] [--quick]

One server at a time, started as a run starts it, on the demo's policy; clients that send their next request when the
last is answered. In each round it samples once undisturbed and once with updates, who goes first alternating. A pause
is from the request to stop to the answer that it goes on, as the orchestrator sees it. The last line is JSON: the
median pause in milliseconds, and tokens with updates over tokens without, the median over rounds and its quartiles.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import jax

from benchmarks.engine_race.models import MODELS, V0, write_model
from benchmarks.engine_race.servers import CORES, server_config, serving
from benchmarks.engines import VLLM, started
from intellect_jax.orchestrator.fleet import Fleet
from intellect_jax.transport.weights import WeightStore
from intellect_jax.types import Version

Json = dict[str, Any]


class Stopwatch:
    """Wraps a fleet's wire and notes how long its servers were paused."""

    def __init__(self, fleet: Fleet):
        self.pauses: list[float] = []  # seconds
        self._post, self._begun = fleet._wire.post, 0.0
        fleet._wire.post = self.post  # type: ignore[method-assign]

    async def post(self, server: Any, path: str, body: Json | None = None) -> Json:
        if path.startswith("/pause"):
            self._begun = time.perf_counter()
        answer = await self._post(server, path, body)
        if path == "/resume":
            self.pauses.append(time.perf_counter() - self._begun)
        return answer


class Clients:
    """A closed loop of ``count`` requests; ``tokens``: of answers so far, streamed or not."""

    def __init__(self, fleet: Fleet, prompt: int, answer: int):
        self.fleet, self.prompt, self.answer = fleet, prompt, answer
        self.tokens, self.stopping = 0, False

    async def run(self, seed: int) -> None:
        rng = random.Random(seed)
        sampling = {"max_tokens": self.answer, "temperature": 1.0, "ignore_eos": True}
        while not self.stopping:
            prompt = [rng.randrange(3, 90) for _ in range(self.prompt)]
            answer = await self.fleet.generate(prompt, sampling, seed=rng.randrange(1 << 30))
            self.tokens += len(answer.token_ids)  # not around the await: others count meanwhile


async def rate(clients: Clients, seconds: float, updating: Any) -> float:
    """Tokens per second, while ``updating`` runs; it is given the time to end."""
    before, begun = clients.tokens, time.perf_counter()
    task = asyncio.ensure_future(updating)
    await asyncio.sleep(seconds)
    found = (clients.tokens - before) / (time.perf_counter() - begun)
    await task
    return found


async def measure(backend: str, options: argparse.Namespace, work: Path) -> Json:
    """One server, from start to end."""
    model = MODELS[options.model]
    _, folder, manifest = write_model(model, work, options.smollm2)
    store = WeightStore(work / "weights", 1000)
    tensors = store.read(manifest)
    config = server_config(backend, model, folder, "float32", str(options.vllm_python))
    if backend == "vllm":
        config.launch.threads = options.vllm_threads
    with serving(config, work / "runs" / backend, work / "tokenizer") as process:
        async with Fleet(config.sampler.urls, config) as fleet:
            watch, clients = Stopwatch(fleet), Clients(fleet, model.prompt, model.answer)
            await started(fleet, process, work / "runs" / backend)
            await fleet.update(manifest, V0)
            running = [asyncio.ensure_future(clients.run(i)) for i in range(options.concurrent)]

            async def updates(seconds: float) -> None:
                """Publishes and updates at the middle of each period."""
                begun = time.perf_counter()
                for i in range(round(seconds / options.every)):
                    version = Version(0, len(store.versions()))
                    await asyncio.sleep(begun + (i + 0.5) * options.every - time.perf_counter())
                    path = await asyncio.to_thread(store.publish, version, tensors.items())
                    await fleet.update(path, version)

            await rate(clients, options.seconds / 2, updates(options.seconds / 2))  # warms up
            watch.pauses.clear()
            rates: list[dict[bool, float]] = []
            for number in range(options.rounds):
                turn = {}
                for with_updates in (True, False) if number % 2 else (False, True):
                    what = updates(options.seconds) if with_updates else asyncio.sleep(0)
                    turn[with_updates] = await rate(clients, options.seconds, what)
                rates.append(turn)
            clients.stopping = True
            await asyncio.gather(*running)
    ratios = [turn[True] / turn[False] for turn in rates]
    return {
        "updates": len(watch.pauses),
        "pause_ms": round(1e3 * median(watch.pauses), 1),
        "longest_pause_ms": round(1e3 * max(watch.pauses), 1),
        "tokens_per_s": round(median(turn[False] for turn in rates)),
        "tokens_per_s_with_updates": round(median(turn[True] for turn in rates)),
        "ratio": round(median(ratios), 3),
        "ratio_quartiles": [round(ratio, 3) for ratio in quantiles(ratios, n=4)[::2]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", default="jax,vllm")
    parser.add_argument("--vllm_python", type=Path, default=VLLM)
    parser.add_argument("--vllm_threads", type=int, default=1, help="as in a run on this machine, by default")
    parser.add_argument("--model", default="demo", choices=tuple(MODELS))
    parser.add_argument("--smollm2", type=Path, help="its folder, made by python -m intellect_jax.bridge.smollm2")
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--every", type=float, default=2.0, help="seconds between versions")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each turn")
    parser.add_argument("--concurrent", type=int, default=16)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true", help="a toy without vLLM, so that the program is tested")
    options = parser.parse_args()
    if options.quick:
        options.backends, options.model, options.rounds, options.seconds, options.every = "jax", "toy", 2, 2.0, 0.5
    figures: Json = {"model": options.model, "every_s": options.every, "concurrent": options.concurrent}
    figures["vllm_threads"] = options.vllm_threads
    figures |= {"cores": CORES, "machine": platform.processor() or platform.machine(), "jax": jax.__version__}
    for backend in options.backends.split(","):
        with tempfile.TemporaryDirectory() as folder:
            figures[backend] = asyncio.run(measure(backend, options, Path(folder)))
        print(f"{backend}: {json.dumps(figures[backend])}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
