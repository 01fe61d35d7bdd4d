"""Finding an environment by its name: an installed package, or one in the ``envs`` folder beside this package."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

from intellect_jax.environments.base import Environment
from intellect_jax.errors import UserError

LOCAL = Path(__file__).parents[2] / "envs"


def load_environment(name: str, **args: Any) -> Environment:
    """Calls ``load_environment(**args)`` of the package ``name``, looked for among installed ones, then in ``envs``.

    Raises UserError, one line, when there is no such package or function, or the function does not take ``args``.
    """
    module = _import(name)
    load = getattr(module, "load_environment", None)
    if load is None:
        raise UserError(f"environment {name}: {module.__name__} has no load_environment")
    try:
        inspect.signature(load).bind(**args)
    except TypeError as error:
        raise UserError(f"environment {name}: load_environment {error}; it takes {_parameters(load)}") from None
    return load(**args)


def _parameters(load: Any) -> str:
    return ", ".join(inspect.signature(load).parameters) or "no arguments"


def _import(name: str) -> Any:
    """Raises UserError also for what is no name of a module."""
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or spec.origin is None:  # no origin: a mere folder of that name in the working directory
        folder = LOCAL / name
        if not name.isidentifier() or not folder.is_dir():
            local = ", ".join(sorted(p.parent.name for p in LOCAL.glob("*/pyproject.toml")))
            raise UserError(f"environment {name} is neither installed nor in {LOCAL} (which has: {local})")
        sys.path.append(str(folder))
        importlib.invalidate_caches()
    return importlib.import_module(name)
