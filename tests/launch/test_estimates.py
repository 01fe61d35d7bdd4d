from math import prod

import jax
import pytest

from intellect_jax import config as schema
from intellect_jax.bridge.families import glm4_moe
from intellect_jax.models.config import ModelConfig
from intellect_jax.models.lora import abstract_adapter
from intellect_jax.models.lora_shape import TARGETS, Lora
from intellect_jax.models.transformer import abstract_params
from intellect_jax.trainer.optimizer import make_optimizer
from launch import estimates
from launch.estimates import Trained
from tests.policies import CONFIGS

ALL = Trained(1000, 2000)


@pytest.mark.parametrize(
    "changes",
    [{}, {"first_k_dense_replace": 3}, {"num_hidden_layers": 5}, {"tie_word_embeddings": True, "n_shared_experts": 0}],
)
def test_parameters_are_those_of_a_checkpoint(changes):
    model = schema.default_config().model
    model.update(changes)
    cfg = ModelConfig.from_config(model, 102)
    assert estimates.parameter_count(cfg) == sum(prod(entry.hf_shape) for entry in glm4_moe.entries(cfg))


@pytest.mark.parametrize("name", ["plain", "llama", "qwen3_moe_sparse_step", "no_shared"])
@pytest.mark.parametrize("targets", [("attention",), ("dense",), ("experts",), TARGETS])
def test_adapters_are_counted(name, targets):
    lora = Lora(3, 1.0, targets)
    shapes = jax.tree.leaves(abstract_adapter(CONFIGS[name], lora))
    assert estimates.adapter_count(CONFIGS[name], lora) == sum(prod(leaf.shape) for leaf in shapes)


def test_memory_and_disk_of_adapters_are_those_of_what_trains():
    config = schema.default_config()
    config.lora.rank, config.export.enabled, config.trainer.max_steps = 4, False, 0
    assert estimates.memory_bytes(config, 1000, Trained(10, 20), ("trainer",)) == 2_000 + 160
    assert estimates.disk_bytes(config, 1000, Trained(10, 20)) == 3 * 120


@pytest.mark.parametrize("optimizer", [{}, {"name": "muon"}, {"name": "muon", "moments_dtype": "bfloat16"}])
@pytest.mark.parametrize("name", ["plain", "qwen3_moe_sparse_step"])
def test_a_checkpoint_is_counted_as_the_optimizer_makes_it(name, optimizer):
    config, cfg = schema.default_config(), CONFIGS[name]
    config.checkpoint.keep, config.export.enabled, config.trainer.max_steps = 1, False, 0
    config.trainer.optimizer.update(optimizer)
    params = abstract_params(cfg)
    state = params, jax.eval_shape(make_optimizer(config.trainer.optimizer).init, params)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state) if leaf.ndim)
    trained = estimates.trained_count(config, cfg)
    assert estimates.disk_bytes(config, 0, trained) == 2 * size


def test_memory_counts_every_copy_on_this_machine():
    config = schema.default_config()
    config.sampler.num_servers = 2
    everything = ("trainer", "orchestrator", "sampler", "env")
    assert estimates.memory_bytes(config, 1000, ALL, everything) == 16_000 + 2 * 2_000
    assert estimates.memory_bytes(config, 1000, ALL, ("trainer",)) == 16_000
    config.sampler.urls = ("http://elsewhere:80",)
    assert estimates.memory_bytes(config, 1000, ALL, everything) == 16_000


def test_disk_counts_what_is_there_while_the_next_is_written():
    config = schema.default_config()
    config.checkpoint.keep, config.weights.keep, config.weights.dtype = 2, 4, "float32"
    assert estimates.disk_bytes(config, 1000, ALL) == 3 * 12_000 + 5 * 4_000 + 2_000
    config.weights.keep_gib = 1e-9  # as many as must be there
    config.weights.keep = 20
    assert estimates.disk_bytes(config, 1000, ALL) == 3 * 12_000 + (10 + 1) * 4_000 + 2_000
    config.weights.keep_gib, config.weights.keep = 0.0, 4
    config.trainer.max_steps, config.checkpoint.every, config.checkpoint.keep_every = 100, 20, 30
    assert estimates.disk_bytes(config, 1000, ALL) == (3 + 2) * 12_000 + 5 * 4_000 + 2_000  # steps 0 and 60 as well
    config.checkpoint.keep_every = 0
    config.trainer.max_steps, config.export.enabled = 0, False
    assert estimates.disk_bytes(config, 1000, ALL) == 3 * 12_000


def test_this_machine_has_memory():
    assert estimates.available_memory() > 10**8


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("cpu", {}, True),
        ("cuda", {"JAX_PLATFORMS": "cpu"}, False),
        ("", {"JAX_PLATFORMS": "cpu"}, True),
        ("", {"JAX_PLATFORMS": "cuda,cpu"}, False),
    ],
)
def test_when_the_cpu_is_certain(platform, environment, expected):
    assert estimates.runs_on_cpu(platform, environment) is expected


@pytest.mark.parametrize(
    ("environment", "devices"),
    [
        ({}, 1),
        ({"XLA_FLAGS": "--a=1 --xla_force_host_platform_device_count=8"}, 8),
        ({"JAX_NUM_CPU_DEVICES": "4"}, 4),
    ],
)
def test_devices_of_a_cpu(environment, devices):
    assert estimates.cpu_devices(environment) == devices
