"""Versions over NCCL, through vLLM's own engine for it, from a trainer that needs no PyTorch.

The trainer's address comes as that of any manifest, ``nccl://10.0.0.1:8010/v0-12/manifest.json``. Nothing but the names
of the tensors is read ahead: they come in the pause, one after the other, each straight into the model.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from vllm.distributed.device_communicators.pynccl_wrapper import NCCLLibrary
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

log = logging.getLogger(__name__)

SCHEME = "nccl"
_LEAST_S, _SLOWEST = 240.0, 32 << 20  # longest that an update may take: seconds, and bytes a second
_PATIENCE_S = 60.0  # for the other workers of this server to ask, too
_UNKNOWN = 503  # the trainer's answer to who has not joined
_TORCH_NAMES = {"F32": "float32", "BF16": "bfloat16"}


@dataclass
class Announced:
    """What a version consists of. ``tensors``: its names, dtypes and shapes, in arrays without memory."""

    address: str = ""  # of the trainer
    version: Version | None = None
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    turned: frozenset[str] = frozenset()  # those that come transposed


def longest(announced: Announced) -> float:
    """Seconds that a version may take, longer than the trainer's own limits: NCCL itself waits for ever."""
    return _LEAST_S + sum(array.size * array.dtype.itemsize for array in announced.tensors.values()) / _SLOWEST


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

    def ask(self, announced: Announced) -> None:
        """Has the trainer send; ``receive`` must follow. Raises WeightError, with nothing on its way."""
        try:
            if self._engine is not None and self._sends(announced):
                return
            self.close()  # of a trainer that was started again, or gave us up
            self._join(announced.address)
            if not self._sends(announced):
                raise WeightError(f"{announced.address} does not know us, who have just joined")
        except SourceFailed as error:
            raise WeightError(str(error)) from error

    def _sends(self, announced: Announced) -> bool:
        """Whether the trainer does; False where we must join first. Raises SourceFailed."""
        try:
            self._call(announced.address, "/send", {"version": str(announced.version)})
        except SourceFailed as error:
            if error.status != _UNKNOWN:
                raise
            return False
        return True

    def receive(self, announced: Announced) -> None:
        """Every tensor into the model, as vLLM's engine does it."""
        assert self._engine is not None
        self._model.turned = announced.turned
        shapes = {
            name: [*array.shape][:: -1 if name in announced.turned else 1] for name, array in announced.tensors.items()
        }
        dtypes = [_TORCH_NAMES[dtype_name(array.dtype)] for array in announced.tensors.values()]
        self._engine.receive_weights(NCCLWeightTransferUpdateInfo(list(shapes), dtypes, list(shapes.values())))
        if self._names[-1].type != "cpu":
            torch.accelerator.synchronize(self._names[-1])  # until here it is only on its way

    def confirm(self, announced: Announced) -> None:
        """That all of it is in the model; a trainer that is at its end waits for that."""
        try:
            self._call(announced.address, "/got", {"version": str(announced.version)})
        except SourceFailed as error:
            log.warning("version %s is here, and the trainer cannot be told: %s", announced.version, error)

    def close(self) -> None:
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None

    def _join(self, address: str) -> None:
        size = self._parallel.world_size * self._parallel.data_parallel_size
        if self._parallel.data_parallel_size == 1 and self._parallel.data_parallel_index > 0:
            raise WeightError("replicas of a dense model take no weights by NCCL: weights.transport=http")
        body = {"size": size, "nccl": int(NCCLLibrary().ncclGetRawVersion())}
        unique_id = self._call(address, "/join", body)["unique_id"]
        engine = NCCLWeightTransferEngine(*self._names, self._model)
        engine.init_transfer_engine(
            NCCLWeightTransferInitInfo(rank_offset=1, world_size=1 + size, nccl_unique_id_b64=unique_id)
        )
        self._engine = engine

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
