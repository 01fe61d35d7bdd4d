"""Tokens per second of our JAX sampler against a vLLM server on this CPU, as the orchestrator sees them.

    python -m benchmarks.engines [--vllm_python=.venv-vllm/bin/python] [--models=demo,smollm2] [--concurrent=16,64]
        [--rounds=5] [--dtype=float32] [--smollm2=models/SmolLM2-135M-Instruct] [--vllm_threads=1]
        [--out=FILE.json] [--quick]

Both are started as a run starts them, with all cores, on the same policy in the same dtype, and take the same requests
through the fleet's own client: /inference/v1/generate with log-probabilities, prompts shared by groups of 8, answers of
one length whatever is sampled. In each round one takes its turn after the other, who goes first alternating; the ratio
is the median over rounds. vLLM runs as `sampler.backend=vllm` starts it on a CPU (eager). The last line is JSON.

``demo`` is the demo's mixture of experts, ``smollm2`` SmolLM2-135M (random weights of its shape without ``--smollm2``).
``--quick``: a toy without vLLM, so that the program itself is tested.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import subprocess
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import jax

from benchmarks.engine_race.models import MODELS, V0, Model, write_model
from benchmarks.engine_race.servers import CORES, ROOT, server_config, serving
from intellect_jax.orchestrator.fleet import Fleet

Json = dict[str, Any]
VLLM = ROOT / ".venv-vllm" / "bin" / "python"
_START = 600.0  # seconds that a server gets to start
_CALM = 0.3  # seconds after which the other side's idle threads have stopped spinning


class Side:
    """One server and its client."""

    def __init__(self, name: str, fleet: Fleet, url: str, model: Model, vocab_size: int):
        self.name, self.fleet, self.url, self.model = name, fleet, url, model
        self.vocab_size = vocab_size

    async def rate(self, concurrent: int, seed: int) -> float:
        """Tokens per second of ``concurrent`` requests in flight until all of a round are answered."""
        prompts = self._prompts(concurrent * self.model.requests, seed)
        numbered = iter(enumerate(prompts))
        await asyncio.sleep(_CALM)
        started = time.perf_counter()
        await asyncio.gather(*(self._client(numbered) for _ in range(concurrent)))
        return len(prompts) * self.model.answer / (time.perf_counter() - started)

    async def _client(self, numbered: Any) -> None:
        sampling = {"max_tokens": self.model.answer, "temperature": 1.0, "ignore_eos": True}
        for number, prompt in numbered:
            answer = await self.fleet.generate(prompt, sampling, seed=number)
            assert len(answer.token_ids) == self.model.answer, f"{self.name} stopped early"

    def _prompts(self, count: int, seed: int) -> list[list[int]]:
        """The same for both sides, new in every round."""
        rng, group = random.Random(seed), self.model.group
        made = [
            [rng.randrange(3, min(self.vocab_size, 40000)) for _ in range(self.model.prompt)]
            for _ in range(-(-count // group))
        ]
        return [made[i // group] for i in range(count)]

    async def recompiled(self) -> int | None:
        """Compilations after warm-up; None where the server does not say."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/metrics") as answer:
            for line in (await answer.text()).splitlines():
                if line.startswith("intellect_jax_compilations_after_warmup_total"):
                    return int(line.split()[1])
        return None


async def race(model: Model, options: argparse.Namespace, work: Path) -> Json:
    """Both servers up, their turns at each number of requests, and what came of it."""
    cfg, folder, manifest = write_model(model, work, options.smollm2)
    backends = ["jax"] if options.quick else ["jax", "vllm"]
    async with AsyncExitStack() as stack:
        sides = []
        for backend in backends:
            config = server_config(backend, model, folder, options.dtype, str(options.vllm_python))
            if backend == "jax" and options.decode_steps:
                config.sampler.decode_steps = options.decode_steps
            if backend == "vllm" and options.vllm_threads:
                config.launch.threads = options.vllm_threads
            process = stack.enter_context(serving(config, work / "runs" / backend, work / "tokenizer"))
            fleet = await stack.enter_async_context(Fleet(config.sampler.urls, config))
            sides.append(Side(backend, fleet, config.sampler.urls[0], model, cfg.vocab_size))
            await started(fleet, process, work / "runs" / backend)
        for side in sides:
            await side.fleet.update(manifest, V0)
        counts = [int(count) for count in options.concurrent.split(",")]
        figures = {str(count): await turns(sides, count, options.rounds) for count in counts}
        return {"answer_tokens": model.answer, "prompt_tokens": model.prompt, "concurrent": figures} | {
            "recompiled": await sides[0].recompiled()
        }


async def started(fleet: Fleet, process: subprocess.Popen[bytes], run_dir: Path) -> None:
    """Until the server answers; ends the program with its last words when it ends instead."""
    waiting = asyncio.ensure_future(fleet.wait_ready(_START))
    while not waiting.done():
        if process.poll() is not None:
            said = (run_dir / "logs" / "sampler-0.log").read_text().splitlines()
            raise SystemExit("\n".join([f"{run_dir.name}: the server ended", *said[-20:]]))
        await asyncio.wait([waiting], timeout=0.5)
    waiting.result()


async def turns(sides: list[Side], concurrent: int, rounds: int) -> Json:
    rates: dict[str, list[float]] = {side.name: [] for side in sides}
    for number in range(-1, rounds):  # the first is for warming up
        for side in sides if number % 2 else sides[::-1]:
            rate = await side.rate(concurrent, seed=1000 * concurrent + number)
            if number >= 0:
                rates[side.name].append(rate)
    figures: Json = {name: round(median(values)) for name, values in rates.items()}
    if "vllm" in rates:
        ratios = [ours / theirs for ours, theirs in zip(rates["jax"], rates["vllm"], strict=True)]
        figures |= {"ratio": round(median(ratios), 2), "ratios": [round(ratio, 2) for ratio in ratios]}
    print(f"{sides[0].model.name}, {concurrent} requests at once, tokens/s: {json.dumps(figures)}", flush=True)
    return figures


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm_python", type=Path, default=VLLM)
    parser.add_argument("--models", default="demo,smollm2")
    parser.add_argument("--concurrent", default="16,64")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--decode_steps", type=int, default=0, help="0: as the model's recipe has it")
    parser.add_argument("--vllm_threads", type=int, default=0, help="OMP_NUM_THREADS of vLLM (0: all cores)")
    parser.add_argument("--smollm2", type=Path, help="its folder, made by python -m intellect_jax.bridge.smollm2")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if options.quick:
        options.models = "toy"
    elif not options.vllm_python.is_file():
        raise SystemExit(f"{options.vllm_python}: not there; `make vllm`, or name another with --vllm_python")
    figures: Json = {"dtype": options.dtype, "cores": CORES, "machine": platform.processor() or platform.machine()}
    figures["vllm_threads"] = options.vllm_threads or CORES
    figures |= {"jax": jax.__version__, "python": platform.python_version(), "rounds": options.rounds}
    for name in options.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            figures[name] = asyncio.run(race(MODELS[name], options, Path(folder)))
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
