"""A sampler's side: brings its mirror to a version, from a folder that it sees or over HTTP."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from pathlib import Path
from urllib.parse import urlsplit

from intellect_jax.transport.mirror import Mirror
from intellect_jax.transport.reading import FOLDER, WeightError, located
from intellect_jax.transport.relay.cache import Cache, default_folder
from intellect_jax.transport.relay.download import DiskProblem, Stalled
from intellect_jax.transport.relay.fetcher import Fetcher, Way
from intellect_jax.transport.relay.server import TOKEN_VARIABLE
from intellect_jax.types import Version

log = logging.getLogger(__name__)

HOST_VARIABLE = "INTELLECT_JAX_RELAY_HOST"  # see Intake, for one that has no configuration
LOCK_S = 600.0  # longest wait for another process of this machine that brings a version
CLOSE_S = 5.0


class Intake:
    """A mirror, and how its versions get here. Safe to use from several threads; whatever fails leaves the mirror.

    Over HTTP versions come into ``cache``, and are passed on from there to whom asks for them at ``host``, the name
    under which other samplers reach this one ("": nothing is passed on). ``token``: of the fleet. All three are by
    default those of the environment.
    """

    def __init__(self, cache: Path | None = None, host: str | None = None, token: str | None = None):
        self.mirror = Mirror()
        self.fetcher: Fetcher | None = None  # from the first version over HTTP on
        self._cache = Cache(cache or default_folder())
        self._host = os.environ.get(HOST_VARIABLE, "") if host is None else host
        self._token = os.environ.get(TOKEN_VARIABLE, "") if token is None else token
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def advance(self, manifest: str) -> Version:
        """Brings the mirror to the version of ``manifest``: a path, or a URL where the trainer serves it, such as
        ``http://10.0.0.1:8010/v0-12/manifest.json``; raises WeightError."""
        where = urlsplit(manifest)
        with self._lock:
            if where.scheme != "http":
                folder, version = located(manifest)
                self.mirror.advance(folder, version)
                return version
            version = _version_of(where.path)
            with self._cache.locked(LOCK_S, self._stop.is_set):
                self._fetch(version, self._fetcher(f"http://{where.netloc}"))
            return version

    def close(self) -> None:
        """Ends whatever goes on, with WeightError for who waits for it, and deletes the cache."""
        self._stop.set()
        if self.fetcher:
            self.fetcher.close()
            with contextlib.suppress(WeightError), self._cache.locked(CLOSE_S):
                self._cache.clear()

    def _fetcher(self, source: str) -> Fetcher:
        """The one for this origin."""
        if self.fetcher is None or self.fetcher.source != source:
            if self.fetcher:
                self.fetcher.close()
            self.fetcher = Fetcher(self._cache, source, self._host, self._token, self._stop.is_set)
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


def _version_of(path: str) -> Version:
    """Of a manifest in a store that is not here."""
    found = FOLDER.fullmatch(Path(path).parent.name)
    if found is None:
        raise WeightError(f"{path} does not lie in the folder of a version")
    return Version(int(found[1]), int(found[2]))
