"""How the kernels come to be there, or not."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from intellect_jax.kernels.native import library
from tests.kernels.on_cpu import require_kernels

ROOT = Path(__file__).parents[3]
USE = """
import logging
logging.basicConfig(level=logging.INFO)
import jax.numpy as jnp
from intellect_jax.kernels.grouped_matmul import grouped_matmul
from intellect_jax.kernels.native import usable
print(usable(), float(grouped_matmul(jnp.ones((5, 3)), jnp.ones((1, 3, 2)), jnp.array([5])).sum()))
"""


def python(**environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | environment
    return subprocess.run([sys.executable, "-c", USE], env=env, capture_output=True, text=True, timeout=200)


@pytest.fixture(autouse=True)
def needs_a_compiler(request):
    if "without" not in request.node.name:
        require_kernels()


def test_processes_that_start_together_compile_once(tmp_path):
    with ThreadPoolExecutor(2) as threads:
        done = list(threads.map(lambda _: python(XDG_CACHE_HOME=str(tmp_path)), range(2)))
    assert [process.stdout.split() for process in done] == [["True", "30.0"]] * 2, done
    assert sum("compiling kernels" in process.stderr for process in done) == 1
    assert len(list((tmp_path / "intellect_jax" / "native").glob("*.so"))) == 1


def compiler(path: Path, script: str) -> str:
    """It knows its version, and does ``script`` when it is to compile."""
    path.write_text(f'#!/bin/sh\nif [ "$1" = --version ]; then echo 1; exit; fi\n{script}\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ('echo "cannot write here" >&2; exit 1', "cannot write here"),
        ('shift $(($# - 1)); echo no library > "$1"', "invalid ELF header|file too short"),
    ],
)
def test_without_a_compiler_that_works_plain_xla_computes_and_the_log_says_why(tmp_path, script, said):
    broken = compiler(tmp_path / "c++", script)
    done = python(XDG_CACHE_HOME=str(tmp_path), CXX=broken)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "30.0"]
    warning = [line for line in done.stderr.splitlines() if "plain XLA, which is slower" in line]
    assert len(warning) == 1 and any(words in warning[0] for words in said.split("|")), done.stderr


def test_without_any_compiler_plain_xla_computes(tmp_path):
    done = python(XDG_CACHE_HOME=str(tmp_path), CXX="no-such-compiler")
    assert done.stdout.split() == ["False", "30.0"]
    assert "no C++ compiler no-such-compiler found" in done.stderr


def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(tmp_path):
    (tmp_path / "file").touch()
    done = python(XDG_CACHE_HOME=str(tmp_path / "file"))
    assert done.stdout.split() == ["False", "30.0"], done.stderr
    assert "Not a directory" in done.stderr


def test_other_sources_flags_or_processors_are_another_library(monkeypatch, tmp_path):
    names = [library._fingerprint(library._compiler())]
    monkeypatch.setattr(library, "_instructions", lambda: "flags: fpu")
    names.append(library._fingerprint(library._compiler()))
    monkeypatch.setattr(library, "_FLAGS", ("-O0",))
    names.append(library._fingerprint(library._compiler()))
    (tmp_path / "kernels.cc").write_text("int x;")
    monkeypatch.setattr(library, "_FOLDER", tmp_path)
    names.append(library._fingerprint(library._compiler()))
    assert len(set(names)) == 4


def test_a_kernel_asked_for_by_name_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(library, "_registered", lambda: False)
    with pytest.raises(RuntimeError, match="Attention: no kernels for this CPU"):
        library.call("Attention", None)
