"""Reading ahead: a version comes into host memory, verified, on a thread of its own while the model samples on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from intellect_jax.transport.reading import WeightError
from intellect_jax.transport.relay.intake import Intake

Tensors = dict[str, np.ndarray]


@dataclass
class _Reading:
    version: str
    thread: threading.Thread | None = None
    error: str | None = None
    damaged: bool = False  # and not of another model: it may be mended

    @property
    def done(self) -> bool:
        return self.thread is None or not self.thread.is_alive()


class Reader:
    """Brings a mirror to versions, one after the other; ``check`` raises ValueError for tensors of another model.

    Whoever uses the tensors may begin the next reading only when done with them: it may change them in place.
    """

    def __init__(self, check: Callable[[Tensors], None], intake: Any = None):
        """``intake``: what brings versions, files unless it is given; see ``relay.intake.Intake``."""
        self._check = check
        self._intake = intake or Intake()
        self._last = _Reading("", error="no version was asked for")

    def begin(self, manifest: str, version: str) -> None:
        """Returns at once. What failed before, or was read before, is read again."""
        if self._last.version == version and not self._last.done:
            return
        reading, before = _Reading(version), self._last
        reading.thread = threading.Thread(
            target=self._read, args=(reading, before, manifest), name=f"read-{version}", daemon=True
        )
        self._last = reading
        reading.thread.start()

    def state(self, version: str) -> dict[str, Any]:
        """Whether the reading is done, and what went wrong; of a version that was not begun, that."""
        if self._last.version != version:
            return {"done": True, "error": f"version {version} is not being read", "damaged": False}
        done = self._last.done
        return {"done": done, "error": self._last.error if done else None, "damaged": self._last.damaged}

    def finish(self, manifest: str, version: str) -> Any:
        """The intake's mirror, of which ``tensors`` are the version's, as soon as they are read; raises WeightError."""
        if self._last.version != version:
            self.begin(manifest, version)
        if self._last.thread is not None:
            self._last.thread.join()
        if self._last.error is not None:
            raise WeightError(self._last.error)
        return self._intake.mirror

    def close(self) -> None:
        """Ends what is being read, with an error, and passes nothing on any more."""
        self._intake.close()

    def _read(self, reading: _Reading, before: _Reading, manifest: str) -> None:
        if before.thread is not None:
            before.thread.join()
        try:
            version = self._intake.advance(manifest)
            if str(version) != reading.version:
                raise WeightError(f"{manifest} is version {version}, not {reading.version}")
            self._check(self._intake.mirror.tensors)
        except Exception as error:
            reading.damaged = isinstance(error, WeightError)
            reading.error = str(error) if isinstance(error, (WeightError, ValueError)) else repr(error)
