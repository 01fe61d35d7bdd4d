"""The trainer's side: says which tensors a version has, and sends them to whom asks."""

from __future__ import annotations

import base64
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, BinaryIO

import jax

from intellect_jax.errors import UserError
from intellect_jax.transport.nccl.group import Group, Lying
from intellect_jax.transport.nccl.library import Library, NcclError, packaged
from intellect_jax.transport.reading import FOLDER, WeightError
from intellect_jax.transport.relay.server import NotHere, Server
from intellect_jax.types import Version

log = logging.getLogger(__name__)

_VERSION = re.compile(rf"/({FOLDER.pattern})")
_POLL_S = 0.2
_CLOSE_S = 5.0


class Sender:
    """Serves the latest version straight out of the arrays that hold it, and the one before, for whoever has just been
    told of that:

    - ``GET /v0-12`` → {tensors: [[name, dtype, shape, turned]]}, in the order in which they are sent.
    - ``POST /join`` {group, size, nccl} → {unique_id}, when all ``size`` workers of the server have asked.
    - ``POST /send`` {group, version} → {}, likewise; then the trainer sends, and the workers must receive.
    - ``POST /got`` {group, version} → {}: a worker has received all of it.
    """

    def __init__(self, library: Library):
        self._library = library
        self._groups: dict[str, Group] = {}
        self._held: deque[tuple[Version, Sequence[Lying]]] = deque(maxlen=2)
        self._lock = threading.Lock()

    def hold(self, version: Version, tensors: Sequence[Lying]) -> None:
        """From now on this is the latest; a version that is being sent stays until it has arrived."""
        jax.block_until_ready([each.array for each in tensors])
        if self._held and self._held[-1][0] == version:  # published again
            self._held.pop()
        self._held.append((version, tensors))

    def readers(self, version: Version) -> int:
        """How many servers have it."""
        with self._lock:
            return sum(group.have[version] == group.size for group in self._groups.values())

    def close(self) -> None:
        with self._lock:
            for group in self._groups.values():
                group.close(_CLOSE_S)

    # ---- what the server asks, in threads of its own

    def open(self, version: Version, name: str, start: int, stop: int | None) -> BinaryIO:
        raise NotHere("versions come by NCCL from here, not as files")

    def answer(self, path: str, question: dict[str, Any] | None) -> Any:
        """See the class; raises NotHere for another version, WeightError where the workers must join again."""
        if (found := _VERSION.fullmatch(path)) and question is None:
            return {"tensors": [t.to_json() for t in self._tensors(Version(int(found[2]), int(found[3])))]}
        if path == "/join" and question is not None:
            return self._join(str(question["group"]), int(question["size"]), int(question["nccl"]))
        if path == "/send" and question is not None:
            return self._send(str(question["group"]), Version.parse(question["version"]))
        if path == "/got" and question is not None:
            self._group(str(question["group"])).have[Version.parse(question["version"])] += 1
            return {}
        raise NotHere(f"nothing is at {path}")

    def _tensors(self, version: Version) -> Sequence[Lying]:
        held = list(self._held)
        for each, tensors in held:
            if each == version:
                return tensors
        raise NotHere(f"version {version} is not here, but {', '.join(str(each) for each, _ in held) or 'none'}")

    def _join(self, name: str, size: int, nccl: int) -> dict[str, str]:
        if size < 1:
            raise ValueError(f"size={size}: a server has one worker at least")
        if nccl != (own := self._library.version()):
            raise ValueError(
                f"{name} has NCCL {nccl}, the trainer {own}, and NCCL connects its own version alone: set the server's "
                f"VLLM_NCCL_SO_PATH to a library like the trainer's, {packaged() or 'libnccl.so.2'}"
            )
        with self._lock:
            group = self._groups.get(name)
            if group is None or group.failure or group.joined or group.size != size:
                if group is not None:
                    group.close()
                try:
                    group = self._groups[name] = Group(name, size, self._library, self._device())
                except NcclError as error:
                    raise WeightError(str(error)) from error
        group.meeting(group.connect)
        return {"unique_id": base64.b64encode(group.unique_id).decode()}

    def _send(self, name: str, version: Version) -> dict[str, Any]:
        group = self._group(name)
        group.meeting(lambda: group.send(version, self._tensors(version)))
        return {}

    def _group(self, name: str) -> Group:
        with self._lock:
            group = self._groups.get(name)
        if group is None or not group.joined:
            raise WeightError(f"{name} has not joined")
        return group

    def _device(self) -> jax.Device:
        if not self._held:
            raise NotHere("there is no version yet")
        return next(iter(self._held[-1][1][0].array.devices()))


class NcclServing:
    """The trainer's handle, like ``relay.serve.Serving``: a sender at ``host`` ("": every interface) and ``port``."""

    def __init__(self, host: str, port: int, token: str, library: Library | None = None):
        try:
            self.sender = Sender(library or Library())
        except NcclError as error:
            raise UserError(f"weights.transport=nccl: {error}; without it: weights.transport=http") from error
        self._server = Server(self.sender, host, port, token)
        self.port = self._server.port

    def ensure(self) -> None:
        """It lives in threads of the trainer."""

    def linger(self, version: Version, readers: int, timeout: float) -> None:
        """Waits until so many servers have the last version, at most ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while self.sender.readers(version) < readers:
            if time.monotonic() > deadline:
                log.warning("not every sampler has received version %s in %.0f s", version, timeout)
                return
            time.sleep(_POLL_S)

    def close(self) -> None:
        self.sender.close()
        self._server.close()
