"""GLM-4.5-Air RL at 65,536 context on 128 devices, with the target's own compiler where it is installed."""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from intellect_jax.config import to_plain
from launch.configuration import load
from launch.plan.compile import Request, available, compile_step
from tests.launch.plan.obvious import Program

ROOT = Path(__file__).parents[3]
RECIPE = ROOT / "configs/glm45_air_rl.py"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not available("cuda"), reason="the CUDA compiler is not installed: make plan-cuda"),
]


def test_it_is_planned_within_three_minutes_and_six_gigabytes_every_flop_of_it(tmp_path):
    out, started = tmp_path / "plan.json", time.monotonic()
    argv = [sys.executable, "-m", "launch", "plan", f"--config={RECIPE}", "--devices=128", "--target=h200"]
    flags = {"XLA_FLAGS": f"--xla_dump_to={tmp_path / 'hlo'} --xla_dump_hlo_as_text"}
    done = subprocess.run(
        [*argv, f"--out={out}"], cwd=ROOT, env={**os.environ, **flags}, capture_output=True, text=True, timeout=900
    )
    seconds, peak = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    assert done.returncode == 0, done.stderr
    print(done.stdout, f"{seconds:.0f} s, {peak / 2**30:.2f} GiB")
    found = json.loads(out.read_text())
    assert seconds < 180 and peak < 6 * 2**30
    assert found["compiler"] == "cuda" and found["memory"]["parameters"] > 0
    (program,) = (tmp_path / "hlo").glob("*jit_step*gpu_after_optimizations.txt")
    slowly = 128 * Program(program.read_text(), groups=128).flops()
    print(f"executed {found['executed_flops']:.6g}, line by line {slowly:.6g}")
    assert found["executed_flops"] == pytest.approx(slowly, rel=0.03) and not found["unknown_kernels"]


def test_depth_costs_no_compile_time():
    def seconds(layers: int) -> float:
        config = load(RECIPE)
        config.model.num_hidden_layers = layers
        compiled = compile_step(Request(to_plain(config), 0, "h200", 128, "cuda"))
        return compiled.trace_seconds + compiled.compile_seconds

    assert seconds(46) < 1.3 * seconds(4)
