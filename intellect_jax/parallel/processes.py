"""Where several processes of one program wait for each other, and agree. With one process nothing happens."""

from __future__ import annotations

import jax
import numpy as np
from jax.experimental import multihost_utils


def meet(what: str) -> None:
    """Returns when every process has come here; ``what`` names the place in the message of one that waits in vain."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def everywhere(holds: bool) -> bool:
    """Whether it holds in every process; all must ask."""
    if jax.process_count() == 1:
        return holds
    return bool(np.all(multihost_utils.process_allgather(np.array(holds))))
