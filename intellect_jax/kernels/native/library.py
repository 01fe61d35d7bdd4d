"""Compiles the kernels once per machine and hands them to XLA.

The library lies in ~/.cache/intellect_jax (XDG_CACHE_HOME moves it) under a name that tells sources, compiler, jaxlib
and processor apart. CXX names the compiler; INTELLECT_JAX_NATIVE=0 turns these kernels off.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import jax

from intellect_jax.files import cache_folder

log = logging.getLogger(__name__)

KERNELS = ("GroupedRows", "GroupedProducts", "Logprobs", "LogprobsGradient", "Attention", "AttentionGradient")
_FOLDER = Path(__file__).parent
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-w")
_TIMEOUT = 300.0  # seconds; it takes 5 to 10


def usable() -> bool:
    """Whether programs that are traced now may use the kernels: on CPUs, if there is a compiler for C++."""
    return _wanted() and jax.default_backend() == "cpu" and _registered()


def _wanted() -> bool:
    return os.environ.get("INTELLECT_JAX_NATIVE", "1") != "0"


def call(name: str, outputs: Any, *arguments: jax.Array, **attributes: Any) -> Any:
    """Arrays of ``outputs``' shapes and dtypes from one of KERNELS; raises RuntimeError where there are none."""
    if not _registered():
        raise RuntimeError(f"{name}: no kernels for this CPU; the log says why")
    return jax.ffi.ffi_call(f"intellect_jax.{name}", outputs, vmap_method="sequential")(*arguments, **attributes)


@cache
def _registered() -> bool:
    try:
        library = ctypes.CDLL(str(_compiled()))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: no home folder
        log.warning("no kernels for this CPU, it computes in plain XLA, which is slower: %s", _said(error))
        return False
    for name in KERNELS:
        jax.ffi.register_ffi_target(f"intellect_jax.{name}", jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    return True


def _said(error: Exception) -> str:
    """The line that matters."""
    lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines() or [""]
    return next((line for line in lines if "error" in line.lower()), lines[-1])


def _compiled() -> Path:
    """The library. Raises OSError or SubprocessError, its ``stderr`` being the compiler's."""
    compiler = _compiler()
    file = cache_folder() / "native" / f"{_fingerprint(compiler)}.so"
    if file.exists():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(file.with_suffix(".lock")):
        if not file.exists():
            log.info("compiling kernels for this CPU with %s, once: some seconds", compiler)
            part = file.with_suffix(f".{os.getpid()}")
            command = [compiler, *_FLAGS, "-I", jax.ffi.include_dir(), str(_FOLDER / "kernels.cc"), "-o", str(part)]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT)
            part.replace(file)
    return file


def _compiler() -> str:
    wanted = os.environ.get("CXX")
    for name in (wanted,) if wanted else ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return found
    raise OSError(f"no C++ compiler {wanted or '(c++, g++ or clang++)'} found")


def _fingerprint(compiler: str) -> str:
    """Of all that the library depends on: a home folder may be shared by different machines."""
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=_TIMEOUT, check=True)
    sources = [file.read_text() for file in sorted(_FOLDER.iterdir()) if file.suffix in (".h", ".cc")]
    parts = [*sources, *_FLAGS, said.stdout, jax.lib.__version__, platform.machine(), _instructions()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _instructions() -> str:
    """What the processor can do, as Linux says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


@contextmanager
def _one_at_a_time(file: Path) -> Iterator[None]:
    """Several processes of a run start together; a lock goes with its process."""
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
