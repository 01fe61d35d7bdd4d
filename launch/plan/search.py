"""``--search``: mesh shapes and remat policies, ranked by arithmetic, the best of them compiled and ranked again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

from ml_collections import ConfigDict

from intellect_jax.errors import UserError
from intellect_jax.models.config import ModelConfig
from intellect_jax.parallel.axes import AXES, refuse_uneven
from launch.plan import estimate
from launch.plan.memory import fits
from launch.plan.model_flops import Batch
from launch.plan.roofline import Roofline
from launch.plan.targets import Target

POLICIES = ("none", "matmuls", "attention", "full")  # of trainer.remat


@dataclass(frozen=True)
class Candidate:
    """One way to run the step, and what arithmetic says of it."""

    mesh: dict[str, int]
    remat: str
    rows: int
    microbatches: int
    memory: dict[str, float]  # bytes by kind
    bound: Roofline

    def apply(self, config: ConfigDict) -> ConfigDict:
        """A copy of the configuration that runs so."""
        changed = config.copy_and_resolve_references()
        for axis, size in self.mesh.items():
            changed.parallel[axis] = size
        changed.trainer.rows, changed.trainer.microbatch_buckets = self.rows, (self.microbatches,)
        changed.trainer.remat = self.remat
        return changed

    @property
    def name(self) -> str:
        axes = " ".join(f"{axis}={size}" for axis, size in self.mesh.items() if size > 1)
        return f"{axes or 'one device'} remat={self.remat} rows={self.rows} microbatches={self.microbatches}"


def candidates(
    config: ConfigDict,
    cfg: ModelConfig,
    target: Target,
    devices: int,
    batch: Batch,
    policies: tuple[str, ...] = POLICIES,
) -> list[Candidate]:
    """Everything that fits by arithmetic, fastest first; the least memory first where nothing fits.

    A step keeps its rows: each mesh takes as many at once as it shards, in so many more microbatches.
    """
    scratch = config.copy_and_resolve_references()
    working = [mesh for mesh in meshes(devices) if _works(scratch, cfg, mesh, batch)]
    found = [_candidate(config, cfg, target, mesh, policy, batch) for mesh in working for policy in policies]
    if not found:
        raise UserError(f"--devices={devices}: no mesh divides this policy and batch: change trainer.rows or --devices")
    fitting = [each for each in found if fits(target, each.memory)]
    if not fitting:
        return sorted(found, key=lambda each: sum(each.memory.values()))
    return sorted(fitting, key=lambda each: (each.bound.serial, sum(each.memory.values())))


def meshes(devices: int) -> Iterator[dict[str, int]]:
    """Every way to factor the devices into the axes."""

    def split(left: int, axes: tuple[str, ...]) -> Iterator[dict[str, int]]:
        if len(axes) == 1:
            yield {axes[0]: left}
            return
        for size in range(1, left + 1):
            if left % size == 0:
                yield from ({axes[0]: size, **rest} for rest in split(left // size, axes[1:]))

    return split(devices, AXES)


def _works(scratch: ConfigDict, cfg: ModelConfig, mesh: dict[str, int], batch: Batch) -> bool:
    """Whether the mesh divides everything; writes its rows into ``scratch``."""
    ways = prod(mesh[axis] for axis in ("data", "fsdp", "expert"))
    if batch.rows * batch.microbatches % ways or (mesh["expert"] > 1 and not cfg.num_moe_layers):
        return False
    scratch.trainer.rows = ways
    try:
        refuse_uneven(mesh, scratch, cfg)
    except UserError:
        return False
    return True


def _candidate(
    config: ConfigDict, cfg: ModelConfig, target: Target, mesh: dict[str, int], policy: str, batch: Batch
) -> Candidate:
    rows = prod(mesh[axis] for axis in ("data", "fsdp", "expert"))
    resized = replace(batch, rows=rows, microbatches=batch.rows * batch.microbatches // rows)
    shape = estimate.Shape.of(config, cfg, resized, mesh, policy)
    return Candidate(mesh, policy, rows, resized.microbatches, estimate.memory(shape), estimate.bound(shape, target))
