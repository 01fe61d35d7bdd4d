"""Compiles the training step for devices that are not there, in a process of its own.

A process of its own because compilers are chosen by environment variables that JAX reads once, and so that whatever a
compiler does to its process cannot harm the plan. Nothing here imports JAX.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from intellect_jax.files import write_json
from launch.plan.roofline import Traffic
from launch.plan.targets import Target

PACKAGES = {"cuda": ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12"), "tpu": ("libtpu",)}
HINTS = {"cuda": "pip install 'intellect-jax[cuda]'", "tpu": "pip install 'intellect-jax[plan-tpu]'"}
_ENVIRONMENT = {
    "cuda": {
        "JAX_PLATFORMS": "cpu,cuda",
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        "CUDA_VISIBLE_DEVICES": "-1",
        "XLA_FLAGS": "--xla_gpu_autotune_level=0",
    },
    "tpu": {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",  # or it asks a metadata server that is not there
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nobody owns a chip: several may compile
    },
}


@dataclass(frozen=True)
class Request:
    """What to compile: a resolved configuration, with ``vocab_size`` rows if it does not say, for a mesh of devices."""

    config: dict[str, Any]
    vocab_size: int
    target: str
    devices: int
    compiler: str  # cuda, tpu, or cpu with fake devices


@dataclass
class Compiled:
    """The compiled step; bytes and FLOPs are of one device."""

    compiler: str
    versions: dict[str, str]
    mesh: dict[str, int]
    batch: list[int]  # microbatches, rows, tokens of a row
    trace_seconds: float = 0.0
    compile_seconds: float = 0.0
    peak_rss: float = 0.0  # bytes, of the process that compiled
    state: dict[str, float] = field(default_factory=dict)  # parameters, optimizer, gradients, batch, ..._host
    program: dict[str, float] = field(default_factory=dict)  # arguments, outputs, aliased, temporaries, host
    kept: float = 0.0  # activations that loops keep for the backward pass
    flops: dict[str, float] = field(default_factory=dict)  # executed, by dtype
    traced_flops: float = 0.0  # of all devices together, by the traced program instead of the compiled one
    traffic: float = 0.0
    collectives: list[Traffic] = field(default_factory=list)
    kernels: dict[str, int] = field(default_factory=dict)  # whose FLOPs are not known
    unknown_loops: int = 0
    refused: str = ""  # why the compiler made no program: it knows how much memory there is

    @property
    def executed_flops(self) -> float:
        return sum(self.flops.values())


class CompilationFailed(RuntimeError):
    """The process ended badly, or took too long; the message ends with what it said last."""


def available(compiler: str) -> bool:
    """Whether a target's own compiler is installed here."""
    return compiler == "cpu" or any(_installed(package) for package in PACKAGES[compiler])


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def compiler_of(target: Target) -> str:
    return target.compiler if available(target.compiler) else "cpu"


def environment(compiler: str, devices: int) -> dict[str, str]:
    """Environment variables of the process that compiles: XLA's flags of ours come after those of the user."""
    variables = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    variables = variables if compiler == "cpu" else _ENVIRONMENT[compiler]
    flags = (os.environ.get("XLA_FLAGS", ""), variables.get("XLA_FLAGS", ""))
    # Kernels of our own for a CPU would hide their FLOPs, and are none of the target's.
    return {**variables, "XLA_FLAGS": " ".join(filter(None, flags)), "INTELLECT_JAX_NATIVE": "0"}


def compile_step(request: Request, timeout: float = 900.0) -> Compiled:
    """Runs the compilation; raises CompilationFailed, and UserError for a configuration that no mesh can run."""
    with tempfile.TemporaryDirectory(prefix="plan-") as name:
        folder = Path(name)
        write_json(folder / "request.json", asdict(request))
        argv = [sys.executable, "-m", "launch.plan.child", str(folder / "request.json"), str(folder / "result.json")]
        with (folder / "log").open("w") as log:
            code = _run(argv, {**os.environ, **environment(request.compiler, request.devices)}, log, timeout)
        if code or not (folder / "result.json").exists():
            said = (folder / "log").read_text(errors="replace").strip().splitlines()[-15:]
            raise CompilationFailed(f"compiling for {request.target} ended with exit code {code}:\n" + "\n".join(said))
        return read_compiled(json.loads((folder / "result.json").read_text()))


def _run(argv: list[str], variables: dict[str, str], log: Any, timeout: float) -> int:
    try:
        return subprocess.run(argv, env=variables, stdout=log, stderr=subprocess.STDOUT, timeout=timeout).returncode
    except subprocess.TimeoutExpired:
        raise CompilationFailed(f"compiling took longer than {timeout:.0f} s") from None


def read_compiled(plain: dict[str, Any]) -> Compiled:
    """From what the child wrote."""
    collectives = [Traffic(**{**each, "axes": tuple(each["axes"])}) for each in plain["collectives"]]
    return Compiled(**{**plain, "collectives": collectives})
