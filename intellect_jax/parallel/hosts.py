"""Which of a trainer's processes this one is, from flags or from what Slurm and Kubernetes put into the environment.

No jax: the answer names log and heartbeat before anything else happens. What it leaves open (how many processes, where
the first one listens) ``jax.distributed`` asks the cluster itself.
"""

from __future__ import annotations

from collections.abc import Mapping

from ml_collections import ConfigDict

from intellect_jax.errors import UserError

# Variables that a cluster gives each process of a job of several, the last of which is its index.
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_PROCID")
KUBERNETES = ("KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX")


def cluster_index(environment: Mapping[str, str]) -> int | None:
    """This process's index among those that Slurm (srun) or Kubernetes (an indexed Job) started, None without them."""
    for names in (SLURM, KUBERNETES):
        if all(environment.get(name) for name in names):
            alone = environment.get("SLURM_NTASKS") == "1" if names is SLURM else False
            return None if alone else int(environment[names[-1]])
    return None


def own_index(distributed: ConfigDict, given: int | None, environment: Mapping[str, str]) -> int | None:
    """This trainer process's index, or None where it is the only one. ``given``: that of ``--index``.

    Raises UserError when configuration, command line and environment do not tell enough, or contradict each other.
    """
    count, found = distributed.processes, cluster_index(environment)
    if count == 1 or (count == 0 and found is None):
        if given:
            raise UserError(f"--index={given}: distributed.processes={count}: must be more than {given}")
        return None
    index = found if given is None else given
    if index is None:
        raise UserError(f"distributed.processes={count}: add --index=0 … --index={count - 1}, one to each process")
    if found is None and not distributed.coordinator:
        raise UserError(f"distributed.coordinator is empty: {count} processes need host:port of the first one")
    if count and index >= count:
        raise UserError(f"--index={index}: distributed.processes={count}: must be less than {count}")
    return index
