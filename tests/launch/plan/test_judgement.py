"""What becomes of a compiled step's figures: memory by kind, verdict, time, and how they are told."""

from dataclasses import replace

import pytest

from configs.glm45_air_rl import get_config
from intellect_jax.models.config import ModelConfig
from launch.plan import report
from launch.plan.compile import Compiled
from launch.plan.main import judge
from launch.plan.roofline import Traffic
from launch.plan.targets import TARGETS

GB = 1e9
MESH = {"data": 1, "fsdp": 8, "expert": 8, "context": 2, "tensor": 1}
COMPILED = Compiled(
    "cuda",
    {"jax": "0.10.2"},
    MESH,
    [64, 64, 65536],
    state={"parameters": 4 * GB, "optimizer": 8 * GB, "batch": 0.1 * GB, "gradients": 4 * GB, "optimizer_host": 1 * GB},
    program={
        "arguments": 12.1 * GB,
        "outputs": 12 * GB,
        "aliased": 12 * GB,
        "temporaries": 60 * GB,
        "code": 0.5 * GB,
        "host": 0.0,
    },
    kept=30 * GB,
    flops={"bf16": 4e17},
    traced_flops=128 * 4e17,
    traffic=1e13,
    collectives=[Traffic("all-gather", 2 * GB, 100, ("fsdp",), 1, 8), Traffic("all-reduce", 4.0, 9, (), 8, 16)],
    kernels={"mystery": 46},
    unknown_loops=1,
)


def judged(compiled, target="h200"):
    config = get_config()
    return judge(config, ModelConfig.from_config(config.model, 0), TARGETS[target], 128, compiled)


def test_kinds_add_up_to_what_the_program_allocates():
    found = judged(COMPILED)
    memory = found["memory"]
    assert sum(memory.values()) == pytest.approx((12.1 + 60 + 0.5) * GB)
    assert memory["gradients"] == 4 * GB and memory["activations"] == 30 * GB
    assert memory["temporaries"] == pytest.approx(26 * GB) and memory["batch"] == pytest.approx(0.1 * GB)
    assert found["fits"] and found["host_memory"] == 1 * GB
    larger = replace(COMPILED, program={**COMPILED.program, "temporaries": 62 * GB})
    assert judged(COMPILED, "h100")["fits"] and not judged(larger, "h100")["fits"]  # 72.6, 74.6 GB of 92% of 80
    assert found["executed_flops"] == 128 * 4e17


def test_another_compilers_temporaries_are_replaced_by_arithmetic():
    found = judged(replace(COMPILED, compiler="cpu"))
    assert "arithmetic" in found["memory_by"] and found["memory"]["parameters"] == 4 * GB
    assert found["memory"]["activations"] == 16384 * 4096 * 2 * 46  # a quarter of a row, a layer's input, bfloat16


def test_a_program_that_the_compiler_refused_does_not_fit():
    refused = replace(COMPILED, refused="RESOURCE_EXHAUSTED: 133G of 95G", program={}, flops={}, collectives=[])
    found = judged(refused, "v5p")
    assert not found["fits"] and found["roofline"]["serial"] > 0
    assert "DOES NOT FIT: the compiler says: RESOURCE_EXHAUSTED" in report.table(found, TARGETS["v5p"])


def test_the_report_tells_all_of_it():
    text = report.table(judged(COMPILED), TARGETS["h200"])
    for part in ("fsdp=8 expert=8 context=2", "FITS", "72.6 GB", "200 GB in      100", "bound by     compute"):
        assert part in text, text
    assert "without the FLOPs of mystery" in text and "1 loops are as long as data say" in text
    assert "on its host" in text


@pytest.mark.parametrize(("size", "text"), [(5, "5 B"), (1234, "1.234 kB"), (2.5e9, "2.5 GB"), (3e12, "3 TB")])
def test_sizes(size, text):
    assert report.size_text(size) == text
