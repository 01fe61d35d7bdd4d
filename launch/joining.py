"""``launch sampler --join=RUN``: one more sampler for a run that goes on."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

from intellect_jax import membership
from intellect_jax.errors import UserError
from launch import addresses, preflight, roles, rundir
from launch.arguments import Arguments
from launch.configuration import Resolved, resolve
from launch.dry_run import dry_run

FIRST = 100  # number of the first that joins; those below are of samplers that the launcher starts


def join(arguments: Arguments) -> int:
    """Serves until told to end, or until the engine fails; leaves word of it in the run directory meanwhile.

    Raises UserError when there is no such run, or when the configuration given does not fit it.
    """
    resolved, url = _resolve(arguments)
    config, run_dir = resolved.config, resolved.run_dir
    preflight.refuse_missing_paths(config)
    preflight.refuse_unwritable(f"--join={arguments.join}", run_dir)
    if arguments.dry_run:
        return dry_run(resolved, write=False)
    index = next(i for i in itertools.count(FIRST) if membership.register(run_dir, roles.role_name("sampler", i), url))
    name = roles.role_name("sampler", index)
    print(f"{name} joins {run_dir} at {url}; Ctrl-C lets it leave", flush=True)
    try:
        return roles.run("sampler", config, run_dir, index, url)
    finally:
        membership.unregister(run_dir, name)


def _resolve(arguments: Arguments) -> tuple[Resolved, str]:
    """The run's own configuration with what the command line changes, and where to serve."""
    run_dir = Path(arguments.join)
    file = run_dir / "config.json"
    if not file.is_file() or not (run_dir / "tokenizer").is_dir():
        raise UserError(f"--join={arguments.join}: no run has started there: give its directory, such as runs/NAME")
    resolved = replace(resolve(replace(arguments, config=str(file))), run_dir=run_dir)
    rundir.refuse_changes(resolved.config, run_dir)
    return resolved, _url(arguments, resolved)


def _url(arguments: Arguments, resolved: Resolved) -> str:
    """The one that the command line names, else a free port of this machine, reached from it alone."""
    if "sampler.urls" not in arguments.overrides:
        return f"http://{addresses.LOCAL}:{addresses.free_ports(1)[0]}"
    urls = resolved.config.sampler.urls
    if len(urls) != 1:
        raise UserError(f"sampler.urls={urls!r}: with --join it must be the one address of this sampler")
    addresses.refuse_unlistenable("sampler.urls", urls[0])
    return urls[0]
