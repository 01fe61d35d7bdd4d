"""Versions on a sampler's own disk: a folder that looks like the weight store."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from math import prod
from pathlib import Path

from intellect_jax.transport.reading import (
    DELTA,
    FOLDER,
    MANIFEST,
    WeightError,
    hash_of,
    read_manifest,
    version_folder,
)
from intellect_jax.transport.relay.parcel import Parcel
from intellect_jax.transport.safetensors_file import DTYPES
from intellect_jax.types import Manifest, Version

VARIABLE = "INTELLECT_JAX_WEIGHT_CACHE"  # a folder, for readers that have no configuration
KEEP = 3  # times a version's size: what a restart needs, and who is late


def folder_of(root: str, run_dir: Path, name: str) -> Path:
    """That of one role of a run; ``root``: weights.cache."""
    run = f"{run_dir.name}-{hash_of(str(run_dir.absolute()).encode())[:8]}"
    return Path(root or tempfile.gettempdir()).absolute() / f"intellect_jax-{os.getuid()}-{run}-{name}"


def default_folder() -> Path:
    """For readers that have no configuration."""
    return Path(os.environ.get(VARIABLE) or f"{tempfile.gettempdir()}/intellect_jax-{os.getuid()}-weights")


class Cache:
    """One folder; whoever changes it holds its lock, and several processes of a machine may share it.

    Invariant: where a manifest stands, the files that it names stand beside it, and came with the hashes that the
    origin told. Whoever reads them checks them all the same: disks fail later, too.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    @contextlib.contextmanager
    def locked(self, timeout: float, stopping: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """For this process and thread alone; raises WeightError when that cannot be had in ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        self._make()
        with (self.folder / ".lock").open("a") as file:
            while not _try_lock(file.fileno()):
                if time.monotonic() > deadline or stopping():
                    raise WeightError(f"another reader has held {self.folder} for {timeout:.0f} s")
                time.sleep(0.02)
            yield

    def _make(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            owner = self.folder.lstat().st_uid
        except OSError as error:
            raise WeightError(f"cannot use {self.folder} for weights: {error.strerror}") from error
        if owner != os.getuid():
            raise WeightError(f"{self.folder} belongs to somebody else: set weights.cache to another folder")

    def has(self, parcel: Parcel) -> bool:
        """Whether exactly this parcel is there, not an earlier one of the same version."""
        try:
            raw = (version_folder(self.folder, parcel.version) / parcel.manifest).read_bytes()
        except OSError:
            return False
        return hash_of(raw) == parcel.tag

    def part(self, parcel: Parcel) -> Path:
        """Where a parcel lies until it is whole."""
        return self.folder / f".v{parcel.version.lineage}-{parcel.version.number}.{parcel.manifest}.part"

    def adopt(self, part: Path, parcel: Parcel) -> None:
        """Makes the files of a whole parcel those of its version: at once, or the manifest last where there are
        others already."""
        final = version_folder(self.folder, parcel.version)
        if not final.exists():
            os.rename(part, final)
            return
        (final / parcel.manifest).unlink(missing_ok=True)
        for name in sorted(parcel.files, key=parcel.manifest.__eq__):
            os.replace(part / name, final / name)
        shutil.rmtree(part, ignore_errors=True)

    def forget(self, version: Version) -> None:
        """Deletes a version, its manifests first."""
        folder = version_folder(self.folder, version)
        for name in (MANIFEST, DELTA):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)

    def versions(self) -> list[Version]:
        """Oldest first."""
        found = (FOLDER.fullmatch(path.name) for path in self.folder.iterdir()) if self.folder.is_dir() else ()
        return sorted(Version(int(m[1]), int(m[2])) for m in found if m)

    def prune(self, newest: Version) -> None:
        """Keeps the newest versions that together take KEEP times the memory of one, at least ``newest``."""
        used, room = 0, KEEP * self._whole(newest)
        self.clear(besides=self.versions())
        for version in reversed(self.versions()):
            used += sum(path.stat().st_size for path in version_folder(self.folder, version).iterdir())
            if used > room and version != newest:
                self.forget(version)

    def clear(self, besides: Collection[Version] = ()) -> None:
        """Deletes all versions but those, and what never became whole."""
        for part in self.folder.glob(".v*.part"):
            shutil.rmtree(part, ignore_errors=True)
        for version in self.versions():
            if version not in besides:
                self.forget(version)

    def _whole(self, version: Version) -> int:
        """Bytes of all tensors of a version."""
        folder = version_folder(self.folder, version)
        manifest = read_manifest(next(folder / name for name in (MANIFEST, DELTA) if (folder / name).exists()))
        return _tensor_bytes(manifest)


def _tensor_bytes(manifest: Manifest) -> int:
    return sum(prod(entry.shape) * DTYPES[entry.dtype].itemsize for entry in manifest.tensors.values())


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
