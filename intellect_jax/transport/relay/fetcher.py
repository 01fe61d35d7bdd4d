"""Brings parcels from an origin and its relays into a cache."""

from __future__ import annotations

import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import NamedTuple

from intellect_jax.transport.reading import DELTA, MANIFEST, WeightError
from intellect_jax.transport.relay.cache import Cache
from intellect_jax.transport.relay.client import SourceFailed, call
from intellect_jax.transport.relay.download import DiskProblem, Download, announce
from intellect_jax.transport.relay.parcel import Parcel, describe_all, version_path
from intellect_jax.transport.relay.server import Server
from intellect_jax.transport.relay.shelf import Relayed
from intellect_jax.types import Version

log = logging.getLogger(__name__)


class Way(NamedTuple):
    """Parcels that lead to a version."""

    nbytes: int  # that are not here yet
    parcels: tuple[Parcel, ...]  # in the order in which they apply


class Fetcher:
    """Knows one origin, and passes on what it brings. Whoever calls it holds the lock of its cache."""

    def __init__(self, cache: Cache, source: str, host: str, token: str, stopping: Callable[[], bool]):
        """``host``: the name under which other samplers reach this one; empty: nothing is passed on."""
        self.source = source
        self.received: Counter[str] = Counter()  # bytes by source, "" the origin
        self._cache, self._token, self._stopping = cache, token, stopping
        self._shelf = Relayed(cache)
        self._server: Server | None = None
        self._relay = ""
        self._announced: set[str] = set()  # tags
        if host:
            self._server = Server(self._shelf, "127.0.0.1" if _is_loopback(host) else "", token=token)
            self._relay = f"http://{host}:{self._server.port}"

    def ways(self, version: Version, have: Version | None) -> Iterator[Way]:
        """From ``version`` back over the bases of deltas, to full versions and to what the reader has; by bytes that
        are not here yet, the fewest first. Looks no further back than needed. Raises WeightError when nobody has the
        version."""
        found: list[Way] = []
        chain: tuple[Parcel, ...] = ()
        nbytes, at = 0, version
        while True:
            parcels = {parcel.manifest: parcel for parcel in self._parcels(at, needed=not chain)}
            if full := parcels.get(MANIFEST):
                found.append(Way(nbytes + self._lacking(full), (full, *chain)))
            delta = parcels.get(DELTA)
            if delta is None or delta.base is None or delta.base >= at:
                break
            chain, nbytes, at = (delta, *chain), nbytes + self._lacking(delta), delta.base
            if at == have:
                found.append(Way(nbytes, chain))
            found.sort(key=lambda way: way.nbytes)
            while found and found[0].nbytes <= nbytes:  # whatever comes from further back takes at least as many
                yield found.pop(0)
        yield from sorted(found, key=lambda way: way.nbytes)

    def bring(self, way: Way) -> None:
        """All that is not here yet; raises WeightError. What came stays for the next try."""
        for parcel in way.parcels:
            if not self._cache.has(parcel):
                self._download(parcel, {each.version for each in way.parcels})
            elif self._relay and parcel.tag not in self._announced:
                announce(parcel, self.source, self._relay, self._token)
            self._announced.add(parcel.tag)

    def close(self) -> None:
        """Passes nothing on any more."""
        if self._server:
            self._server.close()

    def _parcels(self, version: Version, needed: bool) -> list[Parcel]:
        """Those that the origin has, or the cache where the origin has it no more or cannot be asked."""
        try:
            answer = call(self.source, version_path(version), self._token)
            return [Parcel.from_json(version, name, answer[name]) for name in (MANIFEST, DELTA) if name in answer]
        except (SourceFailed, TypeError) as error:
            here = describe_all(self._cache.folder, version)
            if not here and needed:
                raise WeightError(f"version {version}: {error}") from error
            return here

    def _lacking(self, parcel: Parcel) -> int:
        return 0 if self._cache.has(parcel) else parcel.nbytes

    def _download(self, parcel: Parcel, needed: set[Version]) -> None:
        """Where the disk is full, every version that is not ``needed`` goes, and it is tried once more."""
        try:
            self._try(parcel)
        except DiskProblem as error:
            log.warning("%s", error)
            self._cache.clear(besides=needed)
            self._try(parcel)

    def _try(self, parcel: Parcel) -> None:
        begun, part = time.monotonic(), self._cache.part(parcel)
        download = Download(parcel, part, self.source, self._relay, self._token, self._stopping)
        try:
            with self._shelf.showing(download):
                download.run()
                self._cache.adopt(part, parcel)
        except OSError as error:
            raise DiskProblem(f"cannot write {part}: {error.strerror}") from error
        except DiskProblem:
            shutil.rmtree(part, ignore_errors=True)
            raise
        finally:
            self.received += download.received
        counts = ", ".join(f"{n} from {url or 'the trainer'}" for url, n in sorted(download.received.items()))
        log.info("version %s: %.3f s, bytes: %s", parcel.version, time.monotonic() - begun, counts)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
