"""Who may import whom: roles stay apart, and what runs without an accelerator never imports jax."""

import ast
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROLES = ("trainer", "orchestrator", "sampler", "environments")
WITHOUT_JAX = (
    "intellect_jax.orchestrator.main",
    "intellect_jax.environments.worker",
    "intellect_jax.sampler.vllm_server.main",
    "intellect_jax.transport.batches",
    "intellect_jax.transport.weights",
    "intellect_jax.transport.relay.intake",
    "intellect_jax.transport.relay.serve",
    "intellect_jax.data.packing",
    "intellect_jax.data.chat",
    "intellect_jax.bridge.tokenizer",
    "intellect_jax.config",
    "launch.__main__",
    "launch.supervisor",
)


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("role", ROLES)
def test_no_role_imports_another_roles_package(role):
    for path in (ROOT / "intellect_jax" / role).rglob("*.py"):
        for module in imports(path):
            others = [f"intellect_jax.{other}" for other in ROLES if other != role]
            assert not any(module == o or module.startswith(o + ".") for o in others), f"{path}: {module}"


@pytest.mark.parametrize("module", WITHOUT_JAX)
def test_is_imported_without_jax(module):
    code = f"import sys, {module}; sys.exit(any(m in sys.modules for m in ('jax', 'flax', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def test_only_parallel_names_a_mesh_axis():
    for path in (ROOT / "intellect_jax").rglob("*.py"):
        if {"parallel", "config"} & set(path.relative_to(ROOT).parts):
            continue
        with tokenize.open(path) as file:
            tokens = tokenize.generate_tokens(file.readline)
            names = {token.string.strip("\"'") for token in tokens if token.type == tokenize.STRING}
        assert not names & {"fsdp", "tensor"}, path
