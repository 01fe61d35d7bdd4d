"""vLLM's weight transfer backend that reads published versions, from a folder, over HTTP or by NCCL."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from intellect_jax.sampler.vllm_plugin import EXPECTED, nccl
from intellect_jax.sampler.vllm_plugin.nccl import SCHEME, Announced, Announcements, Receiver
from intellect_jax.sampler.vllm_plugin.reader import Reader
from intellect_jax.sampler.vllm_plugin.reload import Loader
from intellect_jax.transport.safetensors_file import dtype_name

log = logging.getLogger(__name__)

HALF_LOADED = 72  # exit code: the model is neither the old one nor the new one, and nobody may sample from it


@dataclass
class InitInfo(WeightTransferInitInfo):
    """Nothing has to be agreed upon: every update names its manifest."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    manifest: str  # path or URL
    version: str  # which it must be of


class ManifestEngine(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Touches the model only with a version that was read and checked, within one call, between two engine steps.

    Reading is begun by the worker (see ``extension``) before anything is paused, and else by ``receive_weights``.

    Under tensor parallelism every rank reads the version, and the model's own loaders take the rank's slices.
    """

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo
    supports_draft_weight_update = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        check = partial(refuse_other_model, expected_file=Path(self.model_config.model) / EXPECTED)
        self._files, self._announced = Reader(check), Reader(check, Announcements())
        self.reader = self._files  # of the last version
        self._receiver = Receiver(*args, **kwargs)
        self.loader = Loader(self.model, self.model_config)

    def begin_reading(self, manifest: str, version: str) -> None:
        """On a thread, while the model samples on; ``reader`` says how it stands."""
        self.reader = self._reader(manifest)
        self.reader.begin(manifest, version)

    def _reader(self, manifest: str) -> Reader:
        return self._announced if manifest.startswith(f"{SCHEME}://") else self._files

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Nothing to do; see :class:`InitInfo`."""

    def start_weight_update(self) -> None:
        """Nothing: an engine step may come before the weights do, and must find the old ones whole."""

    def finish_weight_update(self) -> None:
        """Nothing is left to do when ``receive_weights`` has returned."""

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Raises WeightError, with the model untouched, for what must not be loaded."""
        self.reader = self._reader(update_info.manifest)
        version = self.reader.finish(update_info.manifest, update_info.version)
        begun = time.monotonic()
        if isinstance(version, Announced):
            self._receive(version)
        else:
            with _whole_or_not_at_all(update_info.version):
                self.loader.load(version.tensors)
        log.info("version %s: loaded in %.3f s", update_info.version, time.monotonic() - begun)

    def _receive(self, version: Announced) -> None:
        """Ends the process when it takes too long: a worker that waits in NCCL can do nothing else."""
        most = nccl.longest(version)
        timer = threading.Timer(most, _end, [f"version {version.version} has not come in {most:.0f} s"])
        timer.daemon = True
        timer.start()
        try:
            self._receiver.ask(version)
            with _whole_or_not_at_all(str(version.version)), self.loader.reloading():
                self._receiver.receive(version)
            self._receiver.confirm(version)
        finally:
            timer.cancel()

    def shutdown(self) -> None:
        """Passes versions on no more, and takes none."""
        self._files.close()
        self._receiver.close()


@contextmanager
def _whole_or_not_at_all(version: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        log.exception("version %s", version)
        _end(f"version {version} could not be loaded, the model is not whole any more: {error!r}")


def _end(why: str) -> None:
    log.critical("FATAL %s", why)
    logging.shutdown()
    os._exit(HALF_LOADED)


def refuse_other_model(tensors: dict[str, np.ndarray], expected_file: Path) -> None:
    """Raises ValueError unless names, shapes and dtypes are exactly those that the server was started for."""
    expected: dict[str, Any] = json.loads(expected_file.read_text())
    given = {name: [dtype_name(array.dtype), list(array.shape)] for name, array in tensors.items()}
    for name in sorted(expected.keys() | given.keys()):
        if given.get(name) != expected.get(name):
            raise ValueError(f"tensor {name} is {given.get(name)}, the model's is {expected.get(name)}")
