"""What only a GPU can show, in one go: run it on an H100 or H200, alone, with `intellect-jax[cuda]` installed.

    python -m evidence.gpu [--parts=race,memory] [--torch_python=.venv-oracle/bin/python]
    python -m evidence.gpu --tiny --out=FILE.json        # the same commands at toy size on a CPU

    race        a step of ours against transformers and PyTorch: tokens/s, share of the peak (3 to 6 minutes)
    experts     grouped matmul forward and both gradients over the rate of a dense one (1 minute)
    attention   flash attention with gradients over GLM-4.5-Air's heads (1 minute)
    memory      two recipes that nearly fill the device: `launch plan` against the device's own peak (3 minutes)
    learns      configs/debug_gpu.py, whole: held-out reward before and after (3 minutes)

Results go to benchmarks/results/gpu.json as they come, with device, versions and what was run; what is there
already, of the same device and versions, is not run again. A part that fails is told, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from intellect_jax.files import write_json

Json = dict[str, Any]
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "gpu.json"
PACKAGES = ("jax", "jaxlib", "tokamax", "flax", "optax")
TIMEOUT = 900  # seconds of a command
DEBUG_TINY = (
    *("--config.trainer.platform=cpu", "--config.sampler.platform=cpu", "--config.launch.threads=1"),
    *("--config.model.hidden_size=32", "--config.model.num_hidden_layers=2", "--config.model.n_routed_experts=8"),
    *("--config.model.num_attention_heads=2", "--config.model.intermediate_size=32"),
    *("--config.model.moe_intermediate_size=16", "--config.trainer.rows=4", "--config.sampler.slots=16"),
    *("--config.orchestrator.batch_size=16", "--config.orchestrator.group_size=4", "--config.eval.prompts=4"),
    *("--config.sft.steps=4", "--config.sft.decay_steps=0", "--config.trainer.max_steps=3"),
)


@dataclass(frozen=True)
class Setting:
    """``target``: of `launch plan`; ``tiny``: everything small, on a CPU."""

    target: str
    torch_python: str
    tiny: bool


def last_json(*argv: str) -> Json:
    """The last line that the program prints which is a JSON object; raises RuntimeError when it fails."""
    done = subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)} ended with {done.returncode}: {(done.stderr or done.stdout)[-1500:]}")
    return json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])


def race(at: Setting) -> Json:
    shape = "glm_block_toy" if at.tiny else "glm_block"
    argv = ("benchmarks/trainer_vs_torch.py", f"--shape={shape}", f"--torch_python={at.torch_python}")
    return last_json(*argv, "--rounds=1" if at.tiny else "--rounds=3", "--steps=1" if at.tiny else "--steps=5")


def experts(at: Setting) -> Json:
    found = last_json("benchmarks/grouped_matmul.py", f"--shapes={'toy' if at.tiny else 'glm'}")
    least = min(1 / row["over_dense"] for row in found["rows"] if row["routing"] != "dense")
    return {"least_share_of_dense_rate": round(least, 3), **found}


def attention(at: Setting) -> Json:
    heads = ("--heads=2", "--kv_heads=1", "--width=8") if at.tiny else ("--heads=96", "--kv_heads=8", "--width=128")
    sizes = ("--kernels=chunked", "--lengths=256") if at.tiny else ("--kernels=tokamax", "--lengths=4096,16384,65536")
    dtype = "float32" if at.tiny else "bfloat16"
    return last_json("benchmarks/attention.py", *heads, *sizes, f"--dtype={dtype}", "--short=")


def memory(at: Setting) -> Json:
    return {kind: predicted_and_real(kind, at) for kind in ("experts", "rows")}


def predicted_and_real(kind: str, at: Setting) -> Json:
    """Bytes: what `launch plan` says, what the device had in use at most, and the one over the other."""
    config = f"--config=evidence/nearly_full.py:{kind}-{'tiny' if at.tiny else at.target}"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "plan.json"
        argv = ["-m", "launch", "plan", config, "--devices=1", f"--target={at.target}", f"--out={out}"]
        subprocess.run([sys.executable, *argv], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=TIMEOUT)
        plan = json.loads(out.read_text())
    real = last_json("-m", "launch", "bench", config)
    planned = sum(plan["memory"].values())
    return {
        "planned": planned,
        "by_kind": plan["memory"],
        "planned_by": plan["memory_by"],
        "peak_bytes": real["peak_bytes"],
        "planned_over_peak": round(planned / real["peak_bytes"], 3),
        "step_s": real["step_s"],
        "mfu_measured": real["mfu_measured"],
        "mfu_datasheet": real["mfu_datasheet"],
    }


def learns(at: Setting) -> Json:
    with tempfile.TemporaryDirectory() as folder:
        argv = ["-m", "launch", "--config=configs/debug_gpu.py", f"--config.run.root={folder}", "--config.run.name=run"]
        argv += DEBUG_TINY if at.tiny else ()
        done = subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)
        if done.returncode:
            raise RuntimeError(f"the run ended with {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")
        return json.loads((Path(folder) / "run" / "summary.json").read_text())


PARTS: dict[str, Callable[[Setting], Json]] = {
    part.__name__: part for part in (race, experts, attention, memory, learns)
}


def device() -> tuple[str, str]:
    """Its name, and the target of `launch plan` that it is; asked in a process of its own, which lets go of it."""
    ask = "import json, jax; print(json.dumps({'kind': jax.devices()[0].device_kind}))"
    kind = last_json("-c", ask)["kind"]
    return kind, next((name for name in ("h100", "h200", "b200") if name in kind.lower()), "cpu")


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def run(parts: list[str], at: Setting, kind: str, out: Path) -> list[str]:
    """Runs what is not in ``out`` yet; the parts that failed."""
    results = json.loads(out.read_text()) if out.exists() else {}
    head: Json = {"device": kind, "versions": versions(), "tiny": at.tiny}
    failed = []
    for name in parts:
        if {key: results.get(name, {}).get(key) for key in head} == head:
            print(f"{name}: already there", flush=True)
            continue
        start = time.monotonic()
        try:
            found = PARTS[name](at)
        except (RuntimeError, OSError, ValueError, LookupError, subprocess.SubprocessError) as error:
            print(f"{name}: {error}", flush=True)
            failed.append(name)
            continue
        results[name] = {**head, "seconds": round(time.monotonic() - start, 1), "found": found}
        write_json(out, results)
        print(f"{name}: {json.dumps(results[name])}", flush=True)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them (%(default)s)")
    parser.add_argument("--torch_python", default=str(ROOT / ".venv-oracle" / "bin" / "python"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--tiny", action="store_true", help="at toy size on a CPU, to try the script")
    options = parser.parse_args()
    parts = options.parts.split(",")
    if wrong := set(parts) - set(PARTS):
        parser.error(f"--parts={','.join(sorted(wrong))}: must be out of {', '.join(PARTS)}")
    kind, target = device()
    if target == "cpu" and not options.tiny:
        print(f"{kind}: must be an H100, H200 or B200, or give --tiny", file=sys.stderr)
        return 2
    at = Setting("cpu" if options.tiny else target, options.torch_python, options.tiny)
    failed = run(parts, at, kind, options.out)
    print(f"failed: {', '.join(failed)}" if failed else f"all there: {options.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
