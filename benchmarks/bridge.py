"""Import and export of a checkpoint against reading and writing the same files raw; peak memory of both.

    python benchmarks/bridge.py [--gigabytes=4] [--rounds=1] [--folder=/tmp]

Makes a bf16 mixture-of-experts checkpoint, then, each in a process of its own and in turn: reads its files raw, imports
it, writes its bytes raw, exports it. Every reading starts with the files out of the page cache, every writing ends with
them on the disk. The last line is JSON: speeds relative to raw, and what import needs beyond the parameters.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from math import prod
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from intellect_jax.bridge.families import glm4_moe, hf_config
from intellect_jax.bridge.huggingface import entries
from intellect_jax.bridge.plan import Output, file_names, outputs, shards
from intellect_jax.bridge.source import INDEX
from intellect_jax.models.config import ModelConfig
from intellect_jax.transport import safetensors_file

if TYPE_CHECKING:
    from intellect_jax.bridge import Policy

GIB = 2**30
BLOCK = 16 << 20
SHARD = 1 << 30  # bytes of a weight file
LAYER = ModelConfig(
    vocab_size=32768,
    hidden_size=2048,
    num_hidden_layers=1,
    num_attention_heads=32,
    num_key_value_heads=4,
    head_dim=128,
    intermediate_size=6144,
    moe_intermediate_size=768,
    n_routed_experts=64,
    num_experts_per_tok=8,
    n_shared_experts=1,
    first_k_dense_replace=0,
)


def make(folder: Path, gigabytes: float) -> None:
    """A checkpoint of about ``gigabytes``, in as many layers as that takes."""

    def size(layers: int) -> int:
        return sum(2 * prod(entry.shape) for entry in entries(replace(LAYER, num_hidden_layers=layers)))

    layers = 1 + round((gigabytes * 1e9 - size(1)) / (size(2) - size(1)))
    cfg = replace(LAYER, num_hidden_layers=max(1, layers))
    files = shards(outputs(cfg, "bfloat16", None), SHARD)
    names = file_names(len(files))
    rng = np.random.default_rng(0)
    for name, tensors in zip(names, files, strict=True):
        safetensors_file.write(folder / name, {tensor.name: random_tensor(rng, tensor) for tensor in tensors})
    weight_map = {tensor.name: name for name, tensors in zip(names, files, strict=True) for tensor in tensors}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    more = {**glm4_moe.to_hf_config(cfg), "torch_dtype": "bfloat16"}
    config = hf_config.write(cfg, glm4_moe.MODEL_TYPE, glm4_moe.ARCHITECTURE, more)
    (folder / "config.json").write_text(json.dumps(config))


def random_tensor(rng: np.random.Generator, tensor: Output) -> np.ndarray:
    if tensor.dtype.itemsize == 4:
        return rng.random(tensor.shape, np.float32)
    return rng.integers(0, 1 << 14, tensor.shape, np.uint16).view(tensor.dtype)  # finite, whatever the bits


def read_raw(folder: Path, out: Path) -> dict[str, float]:
    """Every file into memory, block by block."""
    files = forget(folder)
    memory = np.empty(sum(file.stat().st_size for file in files), np.uint8)
    start = time.perf_counter()
    at = 0
    for file in files:
        with file.open("rb", buffering=0) as opened:
            while count := opened.readinto(memory[at : at + BLOCK].data):
                at += count
    return {"seconds": time.perf_counter() - start}


def import_(folder: Path, out: Path) -> dict[str, float]:
    from intellect_jax.bridge import load_pretrained

    forget(folder)
    start = time.perf_counter()
    policy = load_pretrained(folder, dtype="bfloat16")
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_bytes": peak(), "parameter_bytes": parameter_bytes(policy)}


def write_raw(folder: Path, out: Path) -> dict[str, float]:
    """The bytes of every file to the disk, block by block."""
    contents = [np.fromfile(file, np.uint8) for file in sorted(folder.glob("*.safetensors"))]
    out.mkdir()
    start = time.perf_counter()
    for number, content in enumerate(contents):
        with (out / str(number)).open("wb", buffering=0) as opened:
            for at in range(0, len(content), BLOCK):
                opened.write(content[at : at + BLOCK].data)
            os.fsync(opened.fileno())
    return {"seconds": time.perf_counter() - start}


def export(folder: Path, out: Path) -> dict[str, float]:
    from intellect_jax.bridge import load_pretrained, save_pretrained

    policy = load_pretrained(folder, dtype="bfloat16")
    start = time.perf_counter()
    save_pretrained(policy, out, max_shard_bytes=SHARD)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_bytes": peak(), "parameter_bytes": parameter_bytes(policy)}


TASKS = {"read": read_raw, "import": import_, "write": write_raw, "export": export}


def forget(folder: Path) -> list[Path]:
    """Takes the weight files out of the page cache and returns them."""
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return files


def peak() -> int:
    """The most memory that this process ever held, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def parameter_bytes(policy: Policy) -> int:
    import jax

    return sum(leaf.nbytes for leaf in jax.tree.leaves(policy.params))


def run(task: str, folder: Path, out: Path) -> dict[str, float]:
    """One task in a process of its own."""
    command = [sys.executable, __file__, f"--task={task}", f"--folder={folder}", f"--out={out}"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=3600)
    shutil.rmtree(out, ignore_errors=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(folder: Path, rounds: int) -> dict[str, float]:
    """Medians over rounds in which every task runs once."""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    found: dict[str, list[dict[str, float]]] = {task: [] for task in TASKS}
    for number in range(rounds):
        for task in TASKS:
            found[task].append(run(task, folder, folder / "out"))
            speed = size / found[task][-1]["seconds"] / 1e9
            print(f"round {number}: {task:6} {found[task][-1]['seconds']:7.2f} s  {speed:5.2f} GB/s", flush=True)
    seconds = {task: median(each["seconds"] for each in results) for task, results in found.items()}
    over = {
        task: max(each["peak_bytes"] - each["parameter_bytes"] for each in found[task]) / GIB
        for task in ("import", "export")
    }
    return {
        "gigabytes": round(size / 1e9, 2),
        "import_over_raw_read_speed": round(seconds["read"] / seconds["import"], 3),
        "export_over_raw_write_speed": round(seconds["write"] / seconds["export"], 3),
        "import_peak_beyond_parameters_gib": round(over["import"], 3),
        "export_peak_beyond_parameters_gib": round(over["export"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure")
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(TASKS[arguments.task](arguments.folder, arguments.out)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        make(Path(folder), arguments.gigabytes)
        print(json.dumps(compare(Path(folder), arguments.rounds)))


if __name__ == "__main__":
    main()
