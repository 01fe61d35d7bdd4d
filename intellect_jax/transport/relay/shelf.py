"""What a sampler passes on: whole versions of its cache, and what has come of the parcel that is on its way."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from intellect_jax.transport.reading import version_folder
from intellect_jax.transport.relay.cache import Cache
from intellect_jax.transport.relay.download import Download
from intellect_jax.transport.relay.server import NotHere, open_plain
from intellect_jax.types import Version


class Relayed:
    """A shelf for a :class:`Server`. Whoever reads from it checks hashes: it checks none."""

    def __init__(self, cache: Cache):
        self._cache = cache
        self._download: Download | None = None

    @contextlib.contextmanager
    def showing(self, download: Download) -> Iterator[None]:
        """While it runs, what has come of it is passed on."""
        self._download = download
        try:
            yield
        finally:
            self._download = None

    def open(self, version: Version, name: str, start: int, stop: int | None) -> BinaryIO:
        """Raises NotHere."""
        current = self._download
        if current and stop and current.parcel.version == version and current.there(name, start, stop):
            with contextlib.suppress(NotHere):  # it has just become whole
                return open_plain(current.folder / name)
        return open_plain(version_folder(self._cache.folder, version) / name)

    def answer(self, path: str, question: dict[str, Any] | None) -> Any:
        """Nothing but files is here."""
        raise NotHere(f"nothing is at {path}")
