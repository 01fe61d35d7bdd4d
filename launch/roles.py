"""The roles as processes: command line and environment of each, and what runs inside one."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from pathlib import Path

from ml_collections import ConfigDict

from intellect_jax.errors import Hopeless, UserError
from intellect_jax.monitor import watchdog
from launch import addresses, heap
from launch.exit_codes import FAILED, HOPELESS, WRONG_INPUT
from launch.processes import FATAL
from launch.supervisor import RoleSpec

ENTRY_POINTS = {
    "trainer": "intellect_jax.trainer.main",
    "orchestrator": "intellect_jax.orchestrator.main",
    "sampler": "intellect_jax.sampler.main",
    "env": "intellect_jax.environments.worker",
}
VLLM = "intellect_jax.sampler.vllm_server.main"  # the sampler's, where vLLM makes the rollouts
SERVICES = ("sampler", "env")  # roles that run until they are told to end


def specs(config: ConfigDict, config_file: Path, roles: tuple[str, ...]) -> list[RoleSpec]:
    """One RoleSpec per process of the wanted roles. A fleet whose URLs the user gave is not ours to start."""
    samplers = 0 if addresses.given(config, "sampler.urls") else config.sampler.num_servers
    counts = {"sampler": samplers, "env": config.environments.workers}
    if config.distributed.processes > 1:
        counts["trainer"] = config.distributed.processes
    return [
        _spec(config, config_file, role, index)
        for role in roles
        for index in (range(counts[role]) if role in counts else (None,))
    ]


def _spec(config: ConfigDict, config_file: Path, role: str, index: int | None) -> RoleSpec:
    argv = [sys.executable, "-m", "launch", role, f"--config={config_file}"]
    if index is not None:
        argv.append(f"--index={index}")
    variables = environment(config, role)
    if role == "trainer" and index is not None and config.distributed.local_devices:
        variables["JAX_LOCAL_DEVICE_IDS"] = _own_devices(index, config.distributed.local_devices)
    group = role if role == "trainer" else ""
    return RoleSpec(role_name(role, index), argv, variables, service=role in SERVICES, group=group)


def role_name(role: str, index: int | None) -> str:
    """``trainer`` or ``sampler-1``: also the name of its log and of its heartbeat."""
    return role if index is None else f"{role}-{index}"


def _own_devices(index: int, count: int) -> str:
    """Those of process ``index`` where each of the processes of one machine takes ``count``."""
    return ",".join(str(index * count + device) for device in range(count))


def environment(config: ConfigDict, role: str) -> dict[str, str]:
    """Environment variables of a role's process: its JAX platform and its share of the CPU."""
    # Neither the orchestrator nor an environment may take an accelerator away, should a reward function use JAX.
    platform = {"trainer": config.trainer.platform, "sampler": config.sampler.platform}.get(role, "cpu")
    variables = {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
    if platform:
        variables["JAX_PLATFORMS"] = platform
    if config.launch.threads:
        # NPROC sizes XLA's CPU thread pool; no XLA_FLAGS entry does (tried on jax 0.10.2).
        variables |= {"NPROC": str(config.launch.threads), "OMP_NUM_THREADS": str(config.launch.threads)}
    if role in ("trainer", "sampler") and config[role].gpu_memory:
        variables["XLA_PYTHON_CLIENT_MEM_FRACTION"] = str(config[role].gpu_memory)
    if role == "trainer" and config.distributed.local_devices:
        variables["JAX_NUM_CPU_DEVICES"] = str(config.distributed.local_devices)
    return variables


def run(role: str, config: ConfigDict, run_dir: Path, index: int | None, url: str = "") -> int:
    """Runs one role in this process; returns its exit code. What ends it badly stands in the log after FATAL.

    ``url``: where a sampler serves that is none of ``sampler.urls``.
    """
    code = _run(role, config, run_dir, index, url)
    failed = code in (FAILED, HOPELESS)
    if failed and role == "trainer" and index is not None:  # an orderly end would wait for the other processes
        logging.shutdown()
        os._exit(code)
    return code


def _run(role: str, config: ConfigDict, run_dir: Path, index: int | None, url: str) -> int:
    logging.basicConfig(
        level=logging.WARNING,  # of libraries; Orbax alone says a hundred things a checkpoint
        stream=sys.stderr,
        format=f"%(asctime)s.%(msecs)03d %(levelname)s {role_name(role, index)}: %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
    )
    logging.getLogger("intellect_jax").setLevel(logging.INFO)
    os.environ |= environment(config, role)
    if role == "trainer":
        heap.keep_on_a_cpu(config)
    watchdog.start(
        run_dir,
        role_name(role, index),
        timeout=config.launch.progress_timeout,
        partner_timeout=config.launch.heartbeat_timeout,
    )
    try:
        vllm = role == "sampler" and config.sampler.backend == "vllm"
        main = importlib.import_module(VLLM if vllm else ENTRY_POINTS[role]).main
        if role == "orchestrator":
            return main(config, run_dir)
        return main(config, run_dir, index, url) if url else main(config, run_dir, index)
    except UserError as error:
        logging.critical("%s %s", FATAL, error)
        return WRONG_INPUT
    except Hopeless as error:
        logging.critical("%s %s", FATAL, error)
        return HOPELESS
    except KeyboardInterrupt:
        return FAILED
    except Exception as error:
        logging.critical("%s %s: %s", FATAL, type(error).__name__, error, exc_info=True)
        return FAILED
