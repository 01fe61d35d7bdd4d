"""Reading ahead: a version is read, verified and put on the device while requests go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from intellect_jax.models.transformer import Params
from intellect_jax.transport.reading import WeightError
from intellect_jax.types import Version

Loaded = tuple[Params, Version]


class Reader:
    """One reading at a time, in a thread; use it within one event loop.

    ``load`` raises WeightError for what is damaged, ValueError for another model's.
    """

    def __init__(self, load: Callable[[str], Loaded]):
        self._load = load
        self._one_at_a_time = asyncio.Lock()
        self._task: asyncio.Task[Loaded] | None = None
        self._manifest, self._version = "", ""

    def begin(self, manifest: str, version: str = "") -> None:
        """Returns at once; a reading of the same manifest that is under way goes on."""
        if manifest == self._manifest and self._task is not None and not self._task.done():
            self._version = version
            return
        self._manifest, self._version = manifest, version
        self._task = asyncio.create_task(self._read(manifest))
        self._task.add_done_callback(lambda task: task.cancelled() or task.exception())  # whoever asks is told

    def state(self, version: str) -> dict[str, Any]:
        """Whether the reading is done, and what went wrong; of a version that was not begun, that."""
        if self._task is None or version != self._version:
            return {"done": True, "error": f"version {version} is not being read", "damaged": False}
        error = self._task.exception() if self._task.done() else None
        return {
            "done": self._task.done(),
            "error": None if error is None else str(error) or repr(error),
            "damaged": isinstance(error, WeightError),
        }

    async def finish(self, manifest: str) -> Loaded:
        """What was read of the manifest, or is now; once. Raises what ``load`` raises."""
        if self._task is None or manifest != self._manifest:
            self.begin(manifest)
        assert self._task is not None
        try:
            return await asyncio.shield(self._task)
        finally:
            if self._task is not None and self._task.done() and manifest == self._manifest:
                self._task = None  # the parameters are the caller's now

    async def _read(self, manifest: str) -> Loaded:
        async with self._one_at_a_time:
            return await asyncio.to_thread(self._load, manifest)
