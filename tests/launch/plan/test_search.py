"""Which meshes are tried, and that what is chosen would run."""

from dataclasses import replace
from math import prod

import pytest

from intellect_jax import config as schema
from intellect_jax.errors import UserError
from intellect_jax.models.config import ModelConfig
from intellect_jax.parallel.axes import refuse_uneven
from launch.plan import estimate
from launch.plan.memory import fits
from launch.plan.model_flops import Batch
from launch.plan.search import candidates, meshes
from launch.plan.targets import TARGETS
from tests.launch.plan.test_model_flops import GLM45_AIR

H200 = TARGETS["h200"]


def air(rows=128, microbatches=4, length=65536):
    config = schema.default_config()
    config.model.update(GLM45_AIR)
    config.trainer.rows, config.trainer.microbatch_buckets = rows, (microbatches,)
    config.trainer.seq_buckets = (length,)
    return config, ModelConfig.from_config(config.model, 0), Batch(microbatches, rows, length)


def test_meshes_are_all_ways_to_factor_the_devices():
    found = list(meshes(8))
    assert len(found) == len({tuple(mesh.values()) for mesh in found}) == 35  # 3 twos into 5 axes
    assert all(prod(mesh.values()) == 8 for mesh in found)


def test_candidates_fit_run_and_keep_the_step():
    config, cfg, batch = air()
    found = candidates(config, cfg, H200, 128, batch)
    assert all(fits(H200, each.memory) for each in found)
    assert [each.bound.serial for each in found] == sorted(each.bound.serial for each in found)
    for each in found[:5]:
        changed = each.apply(config)
        refuse_uneven(each.mesh, changed, cfg)
        assert each.rows * each.microbatches == batch.rows * batch.microbatches
        assert [line for line in schema.validate(changed) if "trainer.remat" in line or "parallel" in line] == []
    assert found[0].remat != "none"  # nothing fits without recomputation at this length


def test_where_nothing_fits_the_least_memory_comes_first():
    config, cfg, batch = air(rows=8, microbatches=1)
    found = candidates(config, cfg, TARGETS["h100"], 8, batch)
    sizes = [sum(each.memory.values()) for each in found]
    assert sizes == sorted(sizes) and not fits(TARGETS["h100"], found[0].memory)


def test_devices_that_nothing_divides_are_the_users_mistake():
    config, cfg, batch = air()
    with pytest.raises(UserError, match="--devices=7"):
        candidates(config, cfg, H200, 7, batch)


def test_more_remat_takes_less_memory_and_more_time():
    _, cfg, batch = air()
    mesh = {"data": 1, "fsdp": 16, "expert": 8, "context": 1, "tensor": 1}
    shapes = [estimate.Shape(cfg, batch, mesh, remat) for remat in ("none", "matmuls", "attention", "full")]
    kept = [estimate.activations(shape) for shape in shapes]
    compute = [estimate.bound(shape, H200).compute for shape in shapes]
    assert kept == sorted(kept, reverse=True) and compute == sorted(compute)
    assert kept[-1] == 65536 * 4096 * 2 * 46  # one row a device, a layer's input


def test_state_of_glm45_air_is_106_billion_parameters_spread_evenly():
    _, cfg, batch = air()
    shape = estimate.Shape(cfg, batch, {"data": 1, "fsdp": 16, "expert": 8, "context": 1, "tensor": 1}, "full")
    held = estimate.memory(shape)
    dense, experts = shape.weights
    assert dense + experts == pytest.approx(106e9, rel=0.02)
    assert held["parameters"] == held["gradients"] == held["optimizer"] / 2 == 4 * (dense / 16 + experts / 128)
    published = estimate.memory(replace(shape, published=1))["published"]
    assert held["published"] == 0 and published == held["gradients"] / 2
