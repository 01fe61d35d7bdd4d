"""Several processes of one program: how they find each other, wait for each other, and agree.

With one process nothing here waits. Whatever is asked of all, all must ask, in the same order.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

log = logging.getLogger(__name__)

BLOCK = 64  # numbers gathered at once: each size compiles a program of its own


def join(distributed: ConfigDict, index: int | None) -> None:
    """Makes this process number ``index`` of a program of several (None: it is the only one).

    To be called before anything else of JAX. ``distributed``: the configuration's section; what it leaves open is read
    from Slurm or Kubernetes by JAX. A process that finds no others in time ends with JAX's own words (SIGABRT), and so
    does, later on, one whose peer gave no sign of life for ``heartbeat_timeout`` seconds.
    """
    if index is None:
        return
    # JAX's own handler of SIGTERM would take the trainer's place.
    jax.config.update("jax_enable_preemption_service", False)
    told = bool(distributed.coordinator and distributed.processes)
    where = distributed.coordinator or "the cluster's coordinator"
    log.info("process %d joins the others at %s, for at most %.0f s", index, where, distributed.start_timeout)
    jax.distributed.initialize(
        distributed.coordinator or None,
        distributed.processes or None,
        index,
        local_device_ids=_local_devices(distributed.local_devices),
        cluster_detection_method="deactivate" if told else None,
        initialization_timeout=int(distributed.start_timeout),
        heartbeat_timeout_seconds=int(distributed.heartbeat_timeout),
    )
    log.info(
        "process %d of %d with %d of %d devices",
        jax.process_index(),
        jax.process_count(),
        jax.local_device_count(),
        jax.device_count(),
    )


def _local_devices(count: int) -> range | None:
    """The first ``count`` that this process sees; whoever starts several processes on a machine names each one's."""
    return range(count) if count and "JAX_LOCAL_DEVICE_IDS" not in os.environ else None


def leave() -> None:
    """An orderly end: waits for the others to end, too, so that none takes another for dead."""
    if jax.process_count() > 1:
        jax.distributed.shutdown()


def is_first() -> bool:
    """Whether this is the process that speaks for all."""
    return jax.process_index() == 0


def meet(what: str) -> None:
    """Returns when every process has come here; ``what`` names the place in the message of one that waits in vain."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def gathered(values: Sequence[int] | np.ndarray) -> np.ndarray:
    """What each process gave, as [processes, values]; everywhere of the same length."""
    own = np.asarray(values, np.int32)
    if jax.process_count() == 1:
        return own[None]
    padded = np.pad(own, (0, -len(own) % BLOCK))
    return np.asarray(multihost_utils.process_allgather(padded))[:, : len(own)]


def everywhere(holds: bool) -> bool:
    """Whether it holds in every process."""
    return bool(gathered([holds]).all())


def anywhere(holds: bool) -> bool:
    """Whether it holds in any process."""
    return bool(gathered([holds]).any())


def of_first(value: int) -> int:
    """The first process's value."""
    return int(gathered([value])[0, 0])


def list_of_first(values: Sequence[int]) -> list[int]:
    """The last BLOCK - 1 of the first process's numbers: another may see a folder as it was a while ago."""
    last = values[1 - BLOCK :]
    row = gathered([len(last), *last, *[0] * (BLOCK - 1 - len(last))])[0]
    return [int(value) for value in row[1 : 1 + row[0]]]


def summed(values: np.ndarray, counts: bool = True) -> np.ndarray:
    """The sum of int [n] over those processes that count; the shorter ones are filled up with zeros."""
    length = int(gathered([len(values)]).max())
    own = np.pad(values, (0, length - len(values))) * counts
    return gathered(own).sum(axis=0)
