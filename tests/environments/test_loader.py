import subprocess
import sys

import pytest

from intellect_jax.environments import loader


def package(folder, name, text):
    (folder / name).mkdir()
    (folder / name / "pyproject.toml").touch()
    (folder / name / f"{name}.py").write_text(text)


@pytest.fixture
def local(tmp_path, monkeypatch):
    monkeypatch.setattr(loader, "LOCAL", tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_finds_a_local_package_from_any_folder(tmp_path):
    """Also from the folder that holds it, where Python would take the folder itself for a package."""
    code = (
        "from intellect_jax.environments.loader import load_environment; print(load_environment('reverse_text').name)"
    )
    for folder in (tmp_path, loader.LOCAL):
        out = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=60)
        assert out.stdout == "reverse_text\n", out.stderr


def test_unknown_environment_names_the_known_ones(local):
    package(local, "known_environment", "")
    with pytest.raises(ValueError, match=r"no_such_environment is neither installed .*which has: known_environment"):
        loader.load_environment("no_such_environment")


def test_package_without_load_environment():
    with pytest.raises(ValueError, match="environment json: json has no load_environment"):
        loader.load_environment("json")


def test_wrong_arguments_are_one_line():
    with pytest.raises(ValueError, match="reverse_text: load_environment got an unexpected keyword argument 'lenght'"):
        loader.load_environment("reverse_text", lenght=3)


def test_a_missing_dependency_is_not_a_missing_environment(local):
    package(local, "needs_more", "import no_such_dependency")
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        loader.load_environment("needs_more")


def test_importing_an_environment_imports_no_jax():
    code = """
import sys
from intellect_jax.environments.loader import load_environment
load_environment("reverse_text")
sys.exit("jax" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
