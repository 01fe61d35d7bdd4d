"""Versions over NCCL, through vLLM's own engine for it, from a trainer that needs no PyTorch.

The trainer's address comes as that of any manifest, ``nccl://10.0.0.1:8010/v0-12/manifest.json``. Nothing but the names
of the tensors is read ahead: they come in the pause, one after the other, each straight into the model.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from vllm.distributed.weight_transfer.nccl_engine import (
    NCCLWeightTransferEngine,
    NCCLWeightTransferInitInfo,
    NCCLWeightTransferUpdateInfo,
)

from intellect_jax.sampler.vllm_plugin import NAME_VARIABLE
from intellect_jax.transport.reading import FOLDER, WeightError
from intellect_jax.transport.relay.client import SourceFailed, call
from intellect_jax.transport.relay.server import TOKEN_VARIABLE
from intellect_jax.transport.safetensors_file import DTYPES, dtype_name
from intellect_jax.types import Version

SCHEME = "nccl"
_PATIENCE_S = 60.0  # for the other workers of this server to ask, too
_TORCH_NAMES = {"F32": "float32", "BF16": "bfloat16"}


@dataclass
class Announced:
    """What a version consists of. ``tensors``: its names, dtypes and shapes, in arrays without memory."""

    address: str = ""  # of the trainer
    version: Version | None = None
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    turned: frozenset[str] = frozenset()  # those that come transposed


class Announcements:
    """In the place of an intake of files: brings no tensor, but says which will come."""

    def __init__(self) -> None:
        self.mirror = Announced()
        self.token = os.environ.get(TOKEN_VARIABLE, "")

    def advance(self, manifest: str) -> Version:
        """Asks the trainer; raises WeightError when it has another version."""
        where = urlsplit(manifest)
        folder = Path(where.path).parent.name
        found = FOLDER.fullmatch(folder)
        if found is None:
            raise WeightError(f"{manifest} does not lie in the folder of a version")
        version, address = Version(int(found[1]), int(found[2])), f"http://{where.netloc}"
        try:
            tensors = call(address, f"/{folder}", self.token)["tensors"]
        except SourceFailed as error:
            raise WeightError(str(error)) from error
        empty = {name: np.broadcast_to(np.empty((), DTYPES[dtype]), shape) for name, dtype, shape, _ in tensors}
        self.mirror = Announced(address, version, empty, frozenset(name for name, *_, turned in tensors if turned))
        return version

    def close(self) -> None:
        """Nothing is under way."""


class Receiver:
    """One worker's end: joins when the first version is to come, and again after a failure."""

    def __init__(self, config: Any, vllm_config: Any, device: torch.device, model: torch.nn.Module):
        self._model, self._names = _Turning(model), (config, vllm_config, device)
        self._parallel = vllm_config.parallel_config
        self._name = os.environ.get(NAME_VARIABLE) or vllm_config.instance_id
        self._token = os.environ.get(TOKEN_VARIABLE, "")
        self._engine: NCCLWeightTransferEngine | None = None
        self._address = ""

    def ask(self, announced: Announced) -> None:
        """Has the trainer send; ``receive`` must follow. Raises WeightError, with nothing on its way."""
        if self._engine is not None and self._address != announced.address:
            self.close()  # a trainer that was started again
        try:
            if self._engine is None:
                self._join(announced.address)
            self._call(announced.address, "/send", {"version": str(announced.version)})
        except SourceFailed as error:
            if error.status != 404:  # of a version that is not the latest any more
                self.close()
            raise WeightError(str(error)) from error

    def receive(self, announced: Announced) -> None:
        """Every tensor into the model, as vLLM's engine does it."""
        assert self._engine is not None
        self._model.turned = announced.turned
        shapes = {
            name: [*array.shape][:: -1 if name in announced.turned else 1] for name, array in announced.tensors.items()
        }
        dtypes = [_TORCH_NAMES[dtype_name(array.dtype)] for array in announced.tensors.values()]
        self._engine.receive_weights(NCCLWeightTransferUpdateInfo(list(shapes), dtypes, list(shapes.values())))

    def close(self) -> None:
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None

    def _join(self, address: str) -> None:
        size = self._parallel.world_size * self._parallel.data_parallel_size
        unique_id = self._call(address, "/join", {"size": size})["unique_id"]
        engine = NCCLWeightTransferEngine(*self._names, self._model)
        engine.init_transfer_engine(
            NCCLWeightTransferInitInfo(rank_offset=1, world_size=1 + size, nccl_unique_id_b64=unique_id)
        )
        self._engine, self._address = engine, address

    def _call(self, address: str, path: str, body: dict[str, Any]) -> Any:
        return call(address, path, self._token, {"group": self._name, **body}, timeout=_PATIENCE_S)


class _Turning:
    """What vLLM's engine takes for the model: turns round what lies the other way in the trainer's memory."""

    def __init__(self, model: torch.nn.Module):
        self._model = model
        self.turned: frozenset[str] = frozenset()

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Any:
        return self._model.load_weights(self._right_way_round(weights))

    def _right_way_round(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights:
            yield name, tensor.T if name in self.turned else tensor
