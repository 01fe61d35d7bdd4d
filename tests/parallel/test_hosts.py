"""A trainer process knows which one it is, from flags, from Slurm, from Kubernetes, or says what is missing."""

import pytest

from intellect_jax.config import default_config
from intellect_jax.errors import UserError
from intellect_jax.parallel.hosts import own_index

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "16",
    "SLURM_LOCALID": "3",
    "SLURM_PROCID": "11",
}
KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "5"}
MEETING = "node1:8476"


def index(given=None, environment=None, **distributed):
    config = default_config().distributed
    config.update(distributed)
    return own_index(config, given, environment or {})


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (index(), None),
        (index(processes=1), None),
        (index(0, processes=1), None),
        (index(2, processes=4, coordinator=MEETING), 2),
        (index(environment=SLURM), 11),
        (index(environment=KUBERNETES), 5),
        (index(environment=SLURM, processes=16), 11),
        (index(environment=KUBERNETES, processes=8, coordinator=MEETING), 5),
        (index(environment=SLURM | {"SLURM_NTASKS": "1"}), None),
        (index(environment=SLURM, processes=1), None),  # one trainer of a supervisor that Slurm started
        (index(environment={"SLURM_JOB_ID": "7", "SLURM_PROCID": "0"}), None),  # a batch script outside of srun
    ],
)
def test_index(found, expected):
    assert found == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"processes": 4, "coordinator": MEETING}, "--index=0 … --index=3"),
        ({"given": 4, "processes": 4, "coordinator": MEETING}, "--index=4: .* less than 4"),
        ({"given": 1, "processes": 4}, "distributed.coordinator is empty"),
        ({"given": 1}, "--index=1: distributed.processes=0: must be more than 1"),
        ({"given": 1, "processes": 1}, "--index=1: distributed.processes=1: must be more than 1"),
        ({"processes": 4, "environment": SLURM}, "--index=11: .* less than 4"),
    ],
)
def test_what_is_missing_is_told(arguments, message):
    with pytest.raises(UserError, match=message):
        index(**arguments)
