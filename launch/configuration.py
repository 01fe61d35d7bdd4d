"""From a recipe and a command line to one validated configuration. No JAX here: errors must come at once."""

from __future__ import annotations

import ast
import importlib.util
import json
import math
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from intellect_jax import config as schema
from intellect_jax.errors import UserError
from launch.arguments import Arguments
from launch.suggestions import nearest

DEFAULTS = {name: key.default for name, key in schema.walk()}


@dataclass(frozen=True)
class Resolved:
    """A validated configuration, its run directory, and where each changed key comes from."""

    config: ConfigDict
    run_dir: Path
    origins: dict[str, str]  # dotted key → "recipe" or "command line", for keys that differ from the default


def resolve(arguments: Arguments, forced: dict[str, Any] | None = None) -> Resolved:
    """Loads the recipe, applies overrides, then what the command itself sets (``forced``), names the run and validates.

    Raises UserError with one line for whatever the user has to change.
    """
    path, argument = split_spec(arguments.config)
    config = load(path, argument)
    origins = {name: "recipe" for name in _changed(config)}
    for name, text in arguments.overrides.items():
        override(config, name, text)
        origins[name] = "command line"
    for name, value in (forced or {}).items():
        assign(config, name, value)
        origins[name] = f"launch {arguments.command}"
    if not config.run.name:
        config.run.name = f"{path.stem}-seed{config.seed}"
    check(config)
    changed = _changed(config)
    return Resolved(config, run_directory(config), {k: v for k, v in origins.items() if k in changed})


def run_directory(config: ConfigDict) -> Path:
    return Path(config.run.root) / config.run.name


def check(config: ConfigDict) -> None:
    """Raises UserError with the first problem of a whole configuration and how many more there are."""
    for name, default in DEFAULTS.items():
        _check_type(name, default, schema.get(config, name))
    problems = schema.validate(config)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(problems[0] + more)


def split_spec(spec: str) -> tuple[Path, str | None]:
    """``configs/x.py:arg`` → (path, "arg"); raises UserError for a file that is not there or of another kind."""
    head, colon, tail = spec.partition(".py:")
    path, argument = (Path(head + ".py"), tail) if colon else (Path(spec), None)
    if path.suffix not in (".py", ".json"):
        raise UserError(f"--config={spec}: must be a Python recipe (.py) or a .json file")
    if not path.is_file():
        others = [other.stem for other in sorted(path.parent.glob("*" + path.suffix))]
        raise UserError(f"--config={spec}: no such file" + (nearest(path.stem, others) if others else ""))
    return path, argument


def load(path: Path, argument: str | None = None) -> ConfigDict:
    """The configuration that a recipe's ``get_config`` or a JSON file gives, unvalidated."""
    return _load_json(path) if path.suffix == ".json" else _load_recipe(path, argument)


def _load_json(path: Path) -> ConfigDict:
    """Values of a JSON file over the defaults. A run's own config.json means the folder that it lies in."""
    try:
        plain = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    config = schema.default_config()
    for name, value in _leaves(plain, str(path)):
        assign(config, name, value)
    if path.name == "config.json" and path.resolve().parent.name == config.run.name:
        config.run.root = str(path.parent.parent if path.parent.name else path.resolve().parent.parent)
    return config


def _leaves(plain: Any, where: str, prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) of nested JSON objects, as deep as the schema's groups go."""
    if not isinstance(plain, dict):
        raise UserError(f"{where}: {prefix or 'the file'} must be an object of keys, not {plain!r}")
    leaves: list[tuple[str, Any]] = []
    for key, value in plain.items():
        name = prefix + key
        leaves += _leaves(value, where, name + ".") if _is_group(name) else [(name, value)]
    return leaves


def _load_recipe(path: Path, argument: str | None) -> ConfigDict:
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = _call_recipe(module, path, argument)
    except UserError:
        raise
    except Exception as error:
        raise UserError(_recipe_problem(path, error)) from error
    if not isinstance(config, ConfigDict) or not _has_every_key(config):
        raise UserError(f"{path}: get_config() must return a changed intellect_jax.config.default_config()")
    return config


def _call_recipe(module: ModuleType, path: Path, argument: str | None) -> Any:
    if not hasattr(module, "get_config"):
        raise UserError(f"{path}: a recipe must define get_config(arg=None)")
    return module.get_config() if argument is None else module.get_config(argument)


def _recipe_problem(path: Path, error: Exception) -> str:
    """One line for an exception out of a recipe, with the recipe's own line number."""
    lines = [
        f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).resolve() == path.resolve()
    ]
    where = f"{path}:{lines[-1]}" if lines else str(path)
    if isinstance(error, SyntaxError):
        return f"{path}:{error.lineno}: SyntaxError: {error.msg}"
    text = str(error).strip().strip("'\"").split("\n")[0]
    if isinstance(error, (AttributeError, KeyError)) and text.startswith('Key "'):
        wrong = text.split('"')[1]
        return f"{where}: unknown key {wrong!r}{nearest(wrong, DEFAULTS)}"
    return f"{where}: {type(error).__name__}: {text[:300]}"


def override(config: ConfigDict, name: str, text: str) -> None:
    """Sets a key from the text of the command line; raises UserError for unknown keys and wrong types."""
    _check_known(name)
    assign(config, name, parse_value(name, text))
    config.launch.chosen = tuple(chosen for chosen in config.launch.chosen if chosen != name)


def assign(config: ConfigDict, name: str, value: Any) -> None:
    """Sets a key to a value, lists becoming tuples; raises UserError for unknown keys and wrong types."""
    _check_known(name)
    if isinstance(value, list):
        value = tuple(value)
    _check_type(name, DEFAULTS[name], value)
    group, _, last = name.rpartition(".")
    (schema.get(config, group) if group else config)[last] = value


def parse_value(name: str, text: str) -> Any:
    """The value that ``text`` means for a key of the schema; raises UserError where it means none."""
    default = DEFAULTS[name]
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        if isinstance(default, tuple):
            return _parse_tuple(name, text)
        return type(default)(text)
    except (ValueError, KeyError):
        raise UserError(f"{name}={text}: must be {_kind(default)}") from None


def _parse_tuple(name: str, text: str) -> tuple[Any, ...]:
    """A Python literal (``128,256``, ``('a', 'b')``), or else words between commas; words are names in ``envs``."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = tuple(word.strip() for word in text.split(","))
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return tuple(schema.env(v) if name == "envs" and isinstance(v, str) else v for v in values)


def _check_known(name: str) -> None:
    if _is_group(name):
        keys = [key for key in DEFAULTS if key.startswith(name + ".")]
        raise UserError(f"{name} is a group of keys: set one of them, for example {keys[0]}")
    if name not in DEFAULTS:
        raise UserError(f"unknown key {name!r}{nearest(name, DEFAULTS)}")


def _check_type(name: str, default: Any, value: Any) -> None:
    """An int may stand for a float; True is no int; nan and infinity are no numbers that JSON could hold."""
    kinds: tuple[type, ...] = (int, float) if isinstance(default, float) else (type(default),)
    if not isinstance(value, kinds) or (isinstance(value, bool) and not isinstance(default, bool)):
        raise UserError(f"{name}={value!r}: must be {_kind(default)}, not {type(value).__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name}={value!r}: must be a finite number")


def _kind(default: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", tuple: "a tuple"}
    return names[type(default)]


def _is_group(name: str) -> bool:
    return any(key.startswith(name + ".") for key in DEFAULTS)


def _has_every_key(config: ConfigDict) -> bool:
    try:
        return all(schema.get(config, name) is not None for name in DEFAULTS)
    except (KeyError, TypeError):
        return False


def _changed(config: ConfigDict) -> list[str]:
    """Keys whose value is not the default."""
    return [name for name, default in DEFAULTS.items() if schema.get(config, name) != default]
