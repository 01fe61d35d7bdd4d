"""What a reader of versions keeps: all tensors of the one that it has, so that the next may come as a delta."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from intellect_jax.transport import deltas
from intellect_jax.transport.reading import (
    DELTA,
    MANIFEST,
    WeightError,
    read_manifest,
    read_tensors,
    version_folder,
)
from intellect_jax.transport.safetensors_file import dtype_name
from intellect_jax.types import Manifest, Version

log = logging.getLogger(__name__)


class Route(NamedTuple):
    """A way to a version: from the mirror or from a full version, by deltas."""

    nbytes: int  # to read
    full: Path | None  # None: starts from what the mirror has
    deltas: tuple[Path, ...]  # in the order in which they apply


class Mirror:
    """Tensors of one version in host memory, by Hugging Face name.

    An update reads and verifies everything before it changes anything: what fails leaves the mirror as it is.
    """

    def __init__(self) -> None:
        self.version: Version | None = None
        self.tensors: dict[str, np.ndarray] = {}

    def advance(self, folder: Path, version: Version) -> Route:
        """Brings the mirror to a published version by the fewest bytes; where that is damaged, by the next fewest.

        Raises WeightError when there is no sound way.
        """
        problems: list[str] = []
        for route in routes(folder, version, self.version, problems):
            try:
                self._take(route, version)
            except WeightError as error:
                problems.append(str(error))
            else:
                for problem in problems:
                    log.warning("another way to version %s was taken: %s", version, problem)
                return route
        raise WeightError("; ".join(problems) or f"version {version} is not in {folder}")

    def _take(self, route: Route, version: Version) -> None:
        chain = [deltas.read(path) for path in route.deltas]
        tensors, at = self.tensors, self.version
        if route.full:
            manifest = read_manifest(route.full)
            tensors, at = read_tensors(route.full, manifest), manifest.version
        specs = {name: (dtype_name(array.dtype), array.shape) for name, array in tensors.items()}
        for delta in chain:
            if delta.manifest.base != at or _specs(delta.manifest) != specs:
                raise WeightError(f"delta {delta.manifest.version} is not one of version {at}")
            at = delta.manifest.version
        if at != version:
            raise WeightError(f"the files of version {version} are of version {at}")
        for delta in chain:
            delta.apply(tensors)
        self.tensors, self.version = tensors, at


def routes(folder: Path, version: Version, have: Version | None, problems: list[str]) -> Iterator[Route]:
    """Every way to ``version``, by bytes, from it backwards over the bases of its deltas and no further than needed;
    adds manifests that cannot be read to ``problems``. Who has the version and asks for it again reads it again."""
    found: list[Route] = []
    chain: tuple[Path, ...] = ()
    at: Version | None = version
    nbytes = 0
    while at is not None:
        if at == have and chain:
            found.append(Route(nbytes, None, chain))
        found.sort(key=lambda route: route.nbytes)
        while found and found[0].nbytes <= nbytes:  # whatever comes from further back takes at least as many
            yield found.pop(0)
        here = version_folder(folder, at)
        if full := _readable(here / MANIFEST, problems):
            found.append(Route(nbytes + _size(full), here / MANIFEST, chain))
        delta = _readable(here / DELTA, problems)
        if delta is None:
            break
        at, nbytes, chain = delta.base, nbytes + _size(delta), (here / DELTA, *chain)
    yield from sorted(found, key=lambda route: route.nbytes)


def _readable(path: Path, problems: list[str]) -> Manifest | None:
    """The manifest, unless it is not there or damaged."""
    try:
        return read_manifest(path) if path.exists() else None
    except WeightError as error:
        problems.append(str(error))
        return None


def _size(manifest: Manifest) -> int:
    """Bytes of its files."""
    return sum(entry.size for entry in manifest.files.values())


def _specs(manifest: Manifest) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (entry.dtype, tuple(entry.shape)) for name, entry in manifest.tensors.items()}
