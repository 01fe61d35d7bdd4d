"""A sampler's side: brings its mirror to a version, from a folder that it sees or over HTTP."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from pathlib import Path

from intellect_jax.transport.mirror import Mirror
from intellect_jax.transport.reading import FOLDER, WeightError, located
from intellect_jax.transport.relay.cache import Cache, default_folder
from intellect_jax.transport.relay.download import DiskProblem, Stalled
from intellect_jax.transport.relay.fetcher import Fetcher, Way
from intellect_jax.transport.relay.server import TOKEN_VARIABLE
from intellect_jax.types import Version

log = logging.getLogger(__name__)

LOCK_S = 600.0  # longest wait for another process of this machine that brings a version
CLOSE_S = 5.0
LOOK_S = 0.5  # between two looks at what the origin has published


class Reader:
    """A mirror, and how its versions get here. Safe to use from several threads.

    Over HTTP versions come into ``cache``, are passed on from there, and a thread brings each new one as soon as it is
    published: an update then finds it here. Whatever fails leaves the mirror as it is.
    """

    def __init__(self, cache: Path | None = None, token: str | None = None):
        """``token``: of the fleet; None: that of the environment."""
        self.mirror = Mirror()
        self.fetcher: Fetcher | None = None  # from the first version over HTTP on
        self._cache = Cache(cache or default_folder())
        self._token = os.environ.get(TOKEN_VARIABLE, "") if token is None else token
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def advance(self, manifest: str | Path, source: str = "", host: str = "") -> Version:
        """Brings the mirror to the version of ``manifest``, a path in the trainer's store; raises WeightError.

        ``source``: URL where the trainer serves it; empty: it is read from that path. ``host``: the name under which
        other samplers reach this one, so that it passes on what it has; empty: it does not.
        """
        with self._lock:
            if not source:
                return self._read(manifest)
            version = _version_of(manifest)
            try:
                with self._cache.locked(LOCK_S, self._stop.is_set):
                    self._fetch(version, self._fetcher(source, host))
            except WeightError as error:
                if not Path(manifest).is_file():
                    raise
                log.warning("version %s is read from %s: %s", version, manifest, error)
                return self._read(manifest)
            return version

    def close(self) -> None:
        """Ends whatever goes on, with WeightError for who waits for it, and deletes the cache."""
        self._stop.set()
        if self.fetcher:
            self.fetcher.close()
            with contextlib.suppress(WeightError), self._cache.locked(CLOSE_S):
                self._cache.clear()

    def _read(self, manifest: str | Path) -> Version:
        folder, version = located(manifest)
        self.mirror.advance(folder, version)
        return version

    def _fetcher(self, source: str, host: str) -> Fetcher:
        """The one for this origin, and a thread that looks for new versions."""
        if self.fetcher is None or self.fetcher.source != source:
            if self.fetcher is None:
                threading.Thread(target=self._look, name="new versions", daemon=True).start()
            else:
                self.fetcher.close()
            self.fetcher = Fetcher(self._cache, source, host, self._token, self._stop.is_set)
        return self.fetcher

    def _fetch(self, version: Version, fetcher: Fetcher) -> None:
        """Over the ways, from the fewest bytes on. Files that turn out damaged come once more."""
        problems: list[str] = []
        for _ in range(2):
            for way in fetcher.ways(version, self.mirror.version):
                try:
                    self._take(version, fetcher, way)
                except (DiskProblem, Stalled):
                    raise  # no other way is shorter
                except WeightError as error:
                    problems.append(str(error))
                else:
                    for problem in problems:
                        log.warning("version %s is there all the same: %s", version, problem)
                    self._cache.prune(version)
                    return
        raise WeightError("; ".join(dict.fromkeys(problems)) or f"no way leads to version {version}")

    def _take(self, version: Version, fetcher: Fetcher, way: Way) -> None:
        fetcher.bring(way)
        try:
            self.mirror.advance(self._cache.folder, version)
        except WeightError:
            for parcel in way.parcels:
                self._cache.forget(parcel.version)
            raise

    def _look(self) -> None:
        """Brings what is published before anybody asks for it."""
        ahead: Version | None = None
        while not self._stop.wait(LOOK_S):
            fetcher = self.fetcher
            try:
                latest = fetcher.latest() if fetcher else None
                if fetcher and latest and latest not in (ahead, self.mirror.version):
                    with self._cache.locked(LOCK_S, self._stop.is_set):
                        fetcher.bring(next(fetcher.ways(latest, self.mirror.version)))
                        self._cache.prune(latest)
                    ahead = latest
            except (WeightError, OSError, StopIteration) as error:
                log.debug("nothing was fetched ahead: %s", error)  # whoever needs it will say so


def _version_of(manifest: str | Path) -> Version:
    """Of a path in a store that need not be here."""
    found = FOLDER.fullmatch(Path(manifest).parent.name)
    if found is None:
        raise WeightError(f"{manifest} does not lie in the folder of a version")
    return Version(int(found[1]), int(found[2]))
