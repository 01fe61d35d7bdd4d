"""Experts over a mesh give what one device gives, however tokens are routed."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from intellect_jax.parallel.experts import best_strategy

pytestmark = pytest.mark.timeout(1000)
ROOT = Path(__file__).parents[2]
QUICK = ("expert_fsdp/ragged_bounded",)
CASES = (
    "fsdp/local",
    "expert/ring",
    "expert_fsdp/ring_chunks",
    "expert_tensor/ring_bounded",
    "expert_context/ring_bounded",
    "expert/ragged",
    "expert_fsdp/ragged_chunks",
    "expert_tensor/ragged",
    "expert_context/ragged_bounded",
    "fsdp_tensor/local/lora",
    "all/ring_bounded/lora",
    "all/ragged_bounded/lora",
)
REPLAYED = ("expert_context/ragged_bounded", "all/ring")
SENT = {  # (operation, axes within a group); the all-reduce over expert and fsdp is of the flag
    "fsdp_tensor/local": {("all-gather", "fsdp"), ("reduce-scatter", "fsdp"), ("all-reduce", "tensor")},
    "expert_fsdp/ring": {(op, axis) for op in ("all-gather", "reduce-scatter") for axis in ("fsdp", "expert")},
    "expert_fsdp/ragged_bounded": {
        *((op, axis) for op in ("all-gather", "reduce-scatter") for axis in ("fsdp", "expert")),
        ("all-to-all", "expert"),
        ("all-reduce", "fsdp expert"),
    },
}
LAST = "expert/ragged_bounded/nan"  # it patches


def run_cases(cases):
    env = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, str(Path(__file__).with_name("experts_run.py")), *cases]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def errors():
    others = (*(f"{case}/replay" for case in REPLAYED), *(f"{case}/collectives" for case in SENT))
    return run_cases((*CASES, *others, LAST))


def assert_equal_to_one_device(errors, case):
    routings = {name.split(":")[1]: row for name, row in errors.items() if name.startswith(f"{case}:")}
    assert len(routings) == 6
    for routing, row in routings.items():
        assert len(row) == (11 if "lora" in case else 6)  # the output, and gradients of all that goes in
        worst = max(row, key=row.__getitem__)
        assert row[worst] <= 1e-5, (routing, worst, row[worst])


def test_a_strategy_with_fallback_equals_one_device():
    assert_equal_to_one_device(run_cases(QUICK), QUICK[0])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_output_and_gradients_equal_one_device(errors, case):
    assert_equal_to_one_device(errors, case)


@pytest.mark.slow
def test_only_loads_that_the_buffers_cannot_hold_fall_back(errors):
    outputs = {name.split(":")[1]: row["[1]"] for name, row in errors.items() if name.startswith(LAST)}
    fell_back = {routing for routing, error in outputs.items() if math.isnan(error)}
    assert outputs["even"] <= 1e-5 and {"few", "one"} <= fell_back


@pytest.mark.slow
@pytest.mark.parametrize("case", REPLAYED)
def test_given_experts_are_used_on_a_mesh(errors, case):
    given, own = errors[f"{case}/replay:given"], errors[f"{case}/replay:own"]
    assert given["hidden"] <= 1e-5 and given["followed"] == 1.0
    assert own["hidden"] > 1e-2 and own["followed"] < 1.0


@pytest.mark.slow
@pytest.mark.parametrize("case", SENT)
def test_tokens_move_over_the_expert_axis_and_weights_over_fsdp(errors, case):
    sent = errors[f"{case}/collectives:all"]
    assert {(operation, " ".join(axes)) for operation, axes, _ in sent} == SENT[case]
    over_fsdp = [shape for _, axes, shapes in sent for shape in shapes if "fsdp" in axes]
    assert all(len(shape) in (0, 3) for shape in over_fsdp)  # the flag, and [experts, in, out]: never tokens


@pytest.mark.parametrize(
    ("ways", "platform", "capacity", "strategy"),
    [
        (2, "tpu", 2.0, "ring"),  # with 8 experts a token nearly all go everywhere
        (16, "tpu", 2.0, "ragged"),
        (16, "gpu", 1.5, "padded"),
        (8, "gpu", 1.5, "ring"),
        (64, "gpu", 0.0, "ring"),  # buckets without a bound are as long as all tokens
        (16, "cpu", 1.5, "ring"),
    ],
)
def test_the_strategy_is_the_one_that_sends_less(ways, platform, capacity, strategy):
    assert best_strategy(ways, 8, capacity, platform) == strategy
