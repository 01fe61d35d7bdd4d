"""A policy → a Hugging Face folder that transformers and vLLM load, as a stream: no host ever holds the model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from intellect_jax.bridge import plan
from intellect_jax.bridge.companions import write_companions, write_json
from intellect_jax.bridge.huggingface import hf_tensor, to_hf
from intellect_jax.bridge.plan import Output
from intellect_jax.bridge.policy import Policy
from intellect_jax.bridge.source import INDEX, Source
from intellect_jax.bridge.streams import BackgroundWriter, Fetcher, FlushingFile
from intellect_jax.parallel.processes import meet
from intellect_jax.transport import safetensors_file


def save_pretrained(
    policy: Policy,
    out_dir: str | Path,
    dtype: str = "bfloat16",
    max_shard_bytes: int = 5 << 30,
    tokenizer: str | Path | None = None,
) -> None:
    """Writes weights, config, generation config, tokenizer and chat template in place of an older folder, by rename.

    ``dtype``: ``bfloat16`` or ``float32``. ``max_shard_bytes`` bounds a weight file. ``tokenizer``: a folder; None: the
    source's. What training ignores of a policy that has a source comes along untouched: the tensors of
    multi-token-prediction layers, config keys that nobody here knows.

    With several processes, all must call it, on a file system that they share; each writes its share of the files.
    """
    out = Path(out_dir).absolute()
    work = out.with_name(f".{out.name}.tmp")
    source = Source(policy.source) if policy.source else None
    files = plan.shards(plan.outputs(policy.config, dtype, source), max_shard_bytes)
    first = jax.process_index() == 0
    if first:
        shutil.rmtree(work, ignore_errors=True)  # of an export that died
        work.mkdir(parents=True)
    meet("export: folder made")
    _write_weights(policy, source, files, work)
    meet("export: weights written")
    if first:
        _write_index(work, files)
        write_companions(work, policy.config, source, dtype, tokenizer)
        replace_folder(work, out)
    meet("export: folder renamed")


def policy_tensors(policy: Policy, dtype: str, part: int = 0, parts: int = 1) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor under its Hugging Face name, as :func:`huggingface.to_hf` yields it, with the adapter merged.

    Beside the policy itself, one layer of two of its arrays is in memory at a time. Of several processes, all of which
    must go through to the end, each yields the tensors of every ``parts``-th layer of an array.
    """
    if policy.adapter is None and parts == 1:
        yield from to_hf(policy.params, policy.config, dtype)
        return
    fetch = Fetcher(policy.params, policy.adapter)
    layers: dict[Any, int] = {}
    for tensor in plan.outputs(policy.config, dtype, None):
        (entry,) = tensor.parts
        on_host = fetch(entry, tensor.dtype)
        if layers.setdefault((entry.path, entry.index[:1]), len(layers)) % parts == part:
            yield tensor.name, hf_tensor(entry, on_host(), tensor.dtype)


def _write_weights(policy: Policy, source: Source | None, files: list[list[Output]], folder: Path) -> None:
    """Every process walks all tensors; it fetches and writes those of every n-th file."""
    fetch = Fetcher(policy.params, policy.adapter)
    names = plan.file_names(len(files))
    with BackgroundWriter() as writer:
        for number, tensors in enumerate(files):
            mine = number % jax.process_count() == jax.process_index()
            header, placed = safetensors_file.layout({t.name: (t.dtype, t.shape) for t in tensors})
            if mine:
                file = FlushingFile(folder / names[number])
                writer.call(file.write, header)
            by_name = {tensor.name: tensor for tensor in tensors}
            for tensor in (by_name[name] for name in placed):
                for entry in tensor.parts:
                    on_host = fetch(entry, tensor.dtype)
                    if mine:
                        piece = hf_tensor(entry, on_host(), tensor.dtype)
                        writer.call(file.write, safetensors_file.raw_bytes(piece))
                if mine and not tensor.parts and source:
                    writer.call(_copy, source, tensor.name, file)
            if mine:
                writer.call(file.close)


def _copy(source: Source, name: str, file: FlushingFile) -> None:
    view = source.read(name)
    file.write(safetensors_file.raw_bytes(view))
    source.release(view)


def _write_index(folder: Path, files: list[list[Output]]) -> None:
    if len(files) == 1:
        return
    weight_map = {t.name: name for name, of in zip(plan.file_names(len(files)), files, strict=True) for t in of}
    size = sum(tensor.nbytes for tensors in files for tensor in tensors)
    write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})


def replace_folder(work: Path, final: Path) -> None:
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.rename(final, old)
    os.rename(work, final)
    shutil.rmtree(old, ignore_errors=True)
