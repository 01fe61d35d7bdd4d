"""The sampler process: engine and HTTP server together, until SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ml_collections import ConfigDict

from intellect_jax.bridge.shape import model_config
from intellect_jax.bridge.tokenizer import load_tokenizer
from intellect_jax.models.config import ModelConfig
from intellect_jax.monitor import watchdog
from intellect_jax.monitor.compilations import CompilationCounter
from intellect_jax.monitor.metrics import Metrics
from intellect_jax.sampler import loading, server
from intellect_jax.sampler.engine import Engine
from intellect_jax.sampler.programs import Programs
from intellect_jax.sampler.protocol import Limits
from intellect_jax.sampler.reader import Reader
from intellect_jax.sampler.shapes import Shapes
from intellect_jax.sampler.state import ServerState
from intellect_jax.transport.relay.cache import folder_of
from intellect_jax.transport.relay.intake import Intake

log = logging.getLogger(__name__)

_STOP_TIMEOUT = 5.0  # seconds that the engine's thread gets to end
_METRICS_EVERY = 1.0  # seconds
TOKEN_VARIABLE = "INTELLECT_JAX_ADMIN_TOKEN"


def main(config: ConfigDict, run_dir: Path, index: int, url: str = "") -> int:
    """Serves ``url``, or ``config.sampler.urls[index]``, until SIGTERM or SIGINT (0), or the engine fails (1)."""
    tokenizer = load_tokenizer(run_dir / "tokenizer")
    model = model_config(config, run_dir)
    url = url or config.sampler.urls[index]
    intake = Intake(folder_of(config.weights.cache, run_dir, f"sampler-{index}"), urlsplit(url).hostname)
    state = make_state(config, model, tokenizer, intake)
    stopped = asyncio.run(_serve(config, run_dir, index, url, state, intake))
    failed = state.engine.failure is not None
    if not stopped:
        log.warning("the engine is still compiling: leaving without it")
        logging.shutdown()
        os._exit(int(failed))  # a compilation cannot be interrupted, and tearing JAX down under one crashes
    return int(failed)


def make_state(config: ConfigDict, model: ModelConfig, tokenizer: Any, intake: Intake | None = None) -> ServerState:
    """An engine that is not started yet and everything that its server needs; ``tokenizer`` may be None."""
    sampler = config.sampler
    compilations = CompilationCounter()
    warm_params = partial(loading.zeros, model, sampler.dtype)
    shapes = Shapes.from_config(sampler)
    engine = Engine(Programs(model, shapes), sampler.on_update, warm_params, compilations.warm)
    eos = None if tokenizer is None else tokenizer.eos_token_id
    return ServerState(
        engine=engine,
        limits=Limits(sampler.max_len, model.vocab_size, eos),
        pages=shapes.pages,
        tokenizer=tokenizer,
        model_name=config.run.name or config.model.family,
        reader=Reader(partial(loading.load, intake or Intake(), model=model, dtype=sampler.dtype)),
        request_timeout=sampler.request_timeout,
        update_timeout=sampler.request_timeout,
        compilations=compilations,
        admin_token=os.environ.get(TOKEN_VARIABLE, ""),
    )


async def _serve(config: ConfigDict, run_dir: Path, index: int, url: str, state: ServerState, intake: Intake) -> bool:
    """Until a signal or the engine's failure; False when the engine's thread could not be ended."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    where = urlsplit(url)
    runner = await server.start(server.make_app(state), where.hostname or "127.0.0.1", where.port or 80)
    log.info("listening on %s", url)
    state.engine.start()
    metrics = Metrics(run_dir, f"sampler-{index}", tensorboard=config.monitor.tensorboard, spare=True)
    try:
        while not stop.is_set() and state.engine.failure is None:
            metrics.log(None, _row(state))
            watchdog.poll(*_standing(state))
            await _wait(stop, _METRICS_EVERY)
    finally:
        stopped = await asyncio.to_thread(state.engine.stop, _STOP_TIMEOUT)
        await asyncio.to_thread(intake.close)
        await runner.cleanup()
        metrics.close()
    log.info("stopped")
    return stopped


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return


def _standing(state: ServerState) -> tuple[str, Any, str]:
    """For the watchdog: an engine that has requests must write tokens, unless somebody paused it."""
    stats = state.engine.stats()
    if not stats.running and not stats.waiting:
        return "idle", time.monotonic(), ""
    return "decoding", (stats.generated, stats.updates, stats.paused), "orchestrator" if stats.paused else ""


def _row(state: ServerState) -> dict[str, float]:
    stats = state.engine.stats()
    return {
        "tokens/generated": stats.generated,
        "requests/running": stats.running,
        "requests/waiting": stats.waiting,
        "version/number": stats.version.number if stats.version else -1,
        "compile/after_warmup": state.compilations.after_warmup,
        "updates/count": stats.updates,
        "time/update_s": stats.update_seconds,
    }
