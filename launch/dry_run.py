"""What ``--dry_run`` shows."""

from __future__ import annotations

from intellect_jax.config import get
from launch import rundir
from launch.configuration import DEFAULTS, Resolved
from launch.exit_codes import DONE


def dry_run(resolved: Resolved, *, write: bool = True) -> int:
    """Prints the whole configuration, with the origin of what is not default, and leaves it in config.json if asked."""
    for name, default in DEFAULTS.items():
        origin = f"    # {resolved.origins[name]}; default {default!r}" if name in resolved.origins else ""
        print(f"{name} = {get(resolved.config, name)!r}{origin}")
    if write and not rundir.started(resolved.run_dir):  # a started run keeps what its roles were given
        print(f"written to {rundir.write_config(resolved.config, resolved.run_dir)}; nothing was started")
    return DONE
