"""One vLLM server as a role of the run: started, watched, counted and ended by a small process of ours."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
from ml_collections import ConfigDict

from intellect_jax.children import describe_exit, die_with_parent
from intellect_jax.monitor import watchdog
from intellect_jax.monitor.metrics import Metrics
from intellect_jax.monitor.server_stats import Stats, parse
from intellect_jax.sampler.vllm_plugin import NAME_VARIABLE
from intellect_jax.sampler.vllm_server import command
from intellect_jax.sampler.vllm_server.model_folder import link_plugin, make_model_folder
from intellect_jax.transport.relay.cache import VARIABLE, Cache, folder_of
from intellect_jax.transport.relay.intake import HOST_VARIABLE
from intellect_jax.types import Version

log = logging.getLogger(__name__)

FOLDER = "vllm"  # of a run directory: a model folder for each server, and the plug-in
_EVERY = 1.0  # seconds between two looks at the server
_LOOK = aiohttp.ClientTimeout(total=10.0)
_STOP_TIMEOUT = 20.0  # seconds that vLLM gets to end


def main(config: ConfigDict, run_dir: Path, index: int, url: str = "") -> int:
    """Serves ``url``, or ``config.sampler.urls[index]``, until SIGTERM or SIGINT (0), or until vLLM ends (1)."""
    url = url or config.sampler.urls[index]
    folder = run_dir.absolute() / FOLDER
    model = folder / f"model-{index}"
    cfg = make_model_folder(config, run_dir, model)
    variables = command.environment(config, link_plugin(folder / f"plugin-{index}"))
    cache = folder_of(config.weights.cache, run_dir, f"sampler-{index}")
    variables[VARIABLE] = str(cache)
    variables[HOST_VARIABLE] = urlsplit(url).hostname or ""
    variables[NAME_VARIABLE] = url
    argv = command.argv(config, url, model, moe=cfg.num_moe_layers > 0)
    log.info("starting vLLM at %s", url)
    # In our process group: whoever ends that ends vLLM's own children too.
    process = subprocess.Popen(argv, env={**os.environ, **variables}, preexec_fn=die_with_parent())
    try:
        return asyncio.run(_watch(config, run_dir, index, url, process))
    finally:
        _end(process)
        Cache(cache).clear()  # vLLM's workers are killed when it ends, and can't


async def _watch(config: ConfigDict, run_dir: Path, index: int, url: str, process: subprocess.Popen[bytes]) -> int:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    metrics = Metrics(run_dir, f"sampler-{index}", tensorboard=config.monitor.tensorboard, spare=True)
    look = _Look(url)
    try:
        async with aiohttp.ClientSession(timeout=_LOOK) as session:
            while not stop.is_set():
                if process.poll() is not None:
                    log.critical("FATAL vLLM ended with %s", describe_exit(process.returncode))
                    return 1
                row = await look(session)
                if row:
                    metrics.log(None, row)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), _EVERY)
    finally:
        metrics.close()
    log.info("stopped")
    return 0


@dataclass
class _Look:
    """Asks the server how it stands, and tells the watchdog."""

    url: str
    ready: bool = False
    answered: float = 0.0  # time.monotonic() of its last answer
    version: str = ""
    updates: int = 0

    async def __call__(self, session: aiohttp.ClientSession) -> dict[str, float]:
        """A row of metrics; empty while the server does not answer."""
        try:
            async with session.get(f"{self.url}/metrics") as response:
                stats = parse(await response.text())
            async with session.get(f"{self.url}/weight_info") as response:
                version = (await response.json())["weight_version"]
        except (aiohttp.ClientError, TimeoutError, KeyError, ValueError):
            self._no_answer()
            return {}
        if not self.ready:
            log.info("vLLM is ready")
        self.ready, self.answered = True, time.monotonic()
        if version != self.version:
            self.updates += bool(self.version)
            self.version = version
        self._tell(stats)
        return self._row(stats)

    def _no_answer(self) -> None:
        if not self.ready:
            watchdog.poll("vLLM is starting", None)  # its own time-out is launch.start_timeout, the fleet's
        else:
            watchdog.poll("vLLM does not answer", self.answered)

    def _tell(self, stats: Stats) -> None:
        if stats.running or stats.waiting:
            watchdog.poll("decoding", (stats.generated, self.version))
        else:
            watchdog.poll("idle", self.answered)

    def _row(self, stats: Stats) -> dict[str, float]:
        with contextlib.suppress(ValueError):
            return stats.row() | {
                "version/number": Version.parse(self.version).number,
                "updates/count": self.updates,
            }
        return stats.row() | {"version/number": -1, "updates/count": self.updates}


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL to what is left of its processes when that does not help."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(_STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        log.warning("vLLM did not end within %.0f s of SIGTERM and was killed", _STOP_TIMEOUT)
        process.kill()
        process.wait()
