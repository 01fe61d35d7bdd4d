"""The command line as data: ``launch [command] --config=FILE[:arg] --config.key=value --flags``."""

from __future__ import annotations

from dataclasses import dataclass, field

from intellect_jax.errors import UserError
from launch.suggestions import nearest

ROLES = ("trainer", "orchestrator", "sampler", "env")
COMMANDS = ("run", "sft", "eval", "export", "plan", "bench", "vllm", *ROLES)
SWITCHES = ("fresh", "dry_run", "help", "search")
VALUES = ("config", "index", "join", "checkpoint", "out", "devices", "target", "fleet_devices")
NUMBERS = ("index", "devices", "fleet_devices")
ONLY_FOR = {  # options that other commands would silently ignore
    "fresh": ("run", "sft"),
    "index": ("trainer", "sampler", "env"),
    "join": ("sampler",),
    "checkpoint": ("export",),
    "out": ("export", "plan", "vllm"),
    "devices": ("plan",),
    "target": ("plan",),
    "fleet_devices": ("plan",),
    "search": ("plan",),
}


@dataclass
class Arguments:
    """One parsed command line. ``overrides`` maps dotted configuration keys to their text, last one wins."""

    command: str = "run"
    config: str = ""  # FILE.py[:arg] or FILE.json
    overrides: dict[str, str] = field(default_factory=dict)
    fresh: bool = False
    dry_run: bool = False
    help: bool = False
    index: int | None = None  # which trainer process, sampler or environment worker
    join: str = ""  # directory of a run that goes on, which a sampler joins
    checkpoint: str = ""  # step to export; empty: the newest
    out: str = ""  # folder to export to, file of a plan, folder for vLLM; empty: <run>/export, <run>/plan.json
    devices: int = 0  # of the trainer that is planned
    target: str = "cpu"  # hardware to plan for (see plan/targets.py)
    fleet_devices: int = 0  # samplers to plan with; 0: what feeds the trainer
    search: bool = False  # try meshes and remat policies


def parse(argv: list[str]) -> Arguments:
    """Parses everything after ``launch``; raises UserError for what it does not know."""
    arguments = Arguments()
    words = list(argv)
    if words and not words[0].startswith("-"):
        arguments.command = words.pop(0)
        if arguments.command not in COMMANDS:
            raise UserError(f"unknown command {arguments.command!r}{nearest(arguments.command, COMMANDS)}")
    while words:
        _take_flag(arguments, words)
    if arguments.join and (arguments.config or arguments.index is not None):
        raise UserError("--join takes configuration and number from the run: leave --config and --index out")
    if not arguments.config and not arguments.join and not arguments.help:
        raise UserError("which configuration? Add for example --config=configs/debug_cpu.py")
    return arguments


def _take_flag(arguments: Arguments, words: list[str]) -> None:
    """Consumes one flag, with its value, from the front of ``words``."""
    word = words.pop(0)
    if not word.startswith("--"):
        raise UserError(f"cannot place {word!r}: options look like --config.key=value")
    name, equals, value = word[2:].partition("=")
    if arguments.command not in ONLY_FOR.get(name, COMMANDS):
        raise UserError(f"--{name} means nothing to `launch {arguments.command}`, only to: {', '.join(ONLY_FOR[name])}")
    if name in SWITCHES:
        if equals:
            raise UserError(f"--{name} takes no value")
        setattr(arguments, name, True)
        return
    if name not in VALUES and not name.startswith("config."):
        flags = [f"--{flag}" for flag in (*VALUES, *SWITCHES)]
        raise UserError(f"unknown option --{name}{nearest('--' + name, flags)}")
    if not equals:
        if not words or words[0].startswith("--"):
            raise UserError(f"--{name} needs a value: --{name}=…")
        value = words.pop(0)
    if name.startswith("config."):
        arguments.overrides.pop(name[7:], None)  # the last one also comes last
        arguments.overrides[name[7:]] = value
    elif name in NUMBERS:
        setattr(arguments, name, _number(name, value))
    else:
        setattr(arguments, name, value)


def _number(name: str, text: str) -> int:
    if not text.isdigit():
        raise UserError(f"--{name}={text}: must be 0 or more")
    return int(text)
