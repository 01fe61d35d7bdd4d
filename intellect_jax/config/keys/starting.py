"""How `launch` starts, watches and ends the roles."""

from __future__ import annotations

from intellect_jax.config.checks import above, at_least
from intellect_jax.config.key import Key, Section

LAUNCH: Section = {
    "threads": Key(0, "CPU threads of each JAX process (0: JAX's own choice)", at_least(0)),
    "start_timeout": Key(300.0, "longest start of one role, seconds", above(0)),
    "stop_timeout": Key(120.0, "longest orderly end of one role after Ctrl-C, seconds", above(0)),
    "heartbeat_timeout": Key(30.0, "a role without a sign of life for so long is killed, seconds", above(2)),
    "progress_timeout": Key(600.0, "a role that stands still for so long starts again, seconds", above(0)),
    "chosen": Key((), "addresses that the launcher filled in for this start; free again at the next"),
}
