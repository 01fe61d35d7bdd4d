"""A Hugging Face folder to read from: found locally or on the Hub; its config, and its tensors mapped, not loaded."""

from __future__ import annotations

import json
import mmap
import re
import threading
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from intellect_jax.errors import UserError
from intellect_jax.transport import safetensors_file
from intellect_jax.transport.safetensors_file import DTYPES, Stored

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
FLOAT32_SUFFIX = ".e_score_correction_bias"  # of tensors that checkpoints keep in float32 among bfloat16
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def find_folder(path: str | Path, files: tuple[str, ...] = ("*.json", "*.safetensors", *TOKENIZER_FILES)) -> Path:
    """The local folder of ``path``, a folder or a Hub id (``org/name``), whose ``files`` are fetched if need be.

    Without a network, what was fetched before is used. Raises UserError when there is no such thing.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if not _HUB_ID.fullmatch(str(path)):
        raise UserError(f"cannot load the model in {path}: no such folder")
    from huggingface_hub import snapshot_download  # half a second, which local folders save
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(str(path), allow_patterns=list(files)))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"cannot load the model {path}: no such folder, nor from the Hugging Face Hub: {reason}"
        ) from None


class Source:
    """The files of one Hugging Face folder. Every property raises ValueError or OSError when they are damaged."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._lock = threading.Lock()
        self._maps: dict[Path, tuple[mmap.mmap, int]] = {}  # with the address at which it begins

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        return json.loads((self.folder / "config.json").read_text())

    @cached_property
    def tensors(self) -> dict[str, tuple[Path, Stored]]:
        """File and place of every tensor, by name."""
        return {
            name: (file, where) for file in self._files() for name, where in safetensors_file.read_header(file).items()
        }

    @property
    def dtype(self) -> str:
        """The narrowest of ``bfloat16`` and ``float32`` that holds every tensor exactly, but for the few that the
        policy keeps in float32 anyway."""
        kinds = {where.dtype for name, (_, where) in self.tensors.items() if not name.endswith(FLOAT32_SUFFIX)}
        return "bfloat16" if kinds == {"BF16"} else "float32"

    def read(self, name: str) -> np.ndarray:
        """A tensor as a view of its file: nothing is read until it is looked at."""
        file, where = self.tensors[name]
        with self._lock:
            if file not in self._maps:
                self._maps[file] = _map(file)
        mapped = self._maps[file][0]
        count = (where.stop - where.start) // DTYPES[where.dtype].itemsize
        return np.frombuffer(mapped, DTYPES[where.dtype], count, where.start).reshape(where.shape)

    def release(self, view: np.ndarray) -> None:
        """Takes the pages below a view that was read out of this process's memory; it may be looked at again."""
        if not view.size:
            return
        first, last = np.lib.array_utils.byte_bounds(view)
        for mapped, base in self._maps.values():
            if base <= first < base + len(mapped):
                start = (first - base) // mmap.PAGESIZE * mmap.PAGESIZE
                mapped.madvise(mmap.MADV_DONTNEED, start, last - base - start)

    def _files(self) -> list[Path]:
        """The safetensors files, each checked to be there."""
        files = [SINGLE]
        if (self.folder / INDEX).exists():
            files = sorted(set(json.loads((self.folder / INDEX).read_text())["weight_map"].values()))
        missing = [file for file in files if not (self.folder / file).is_file()]
        if missing:
            raise ValueError(f"{self.folder} lacks {', '.join(missing)}")
        return [self.folder / file for file in files]


def _map(file: Path) -> tuple[mmap.mmap, int]:
    with file.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)
    return mapped, np.frombuffer(mapped, np.uint8).ctypes.data
