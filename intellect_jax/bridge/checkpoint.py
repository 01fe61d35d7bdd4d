"""Orbax checkpoints of a run: the trainer's state and the orchestrator's ledger in one atomic step.

    <folder>/<step>/state      the trainer's state (arrays, Orbax's format)
    <folder>/<step>/ledger     JSON
    <folder>/<step>/hashes.json  xxh3_64 of every file of the two, sealed

Orbax notices a missing or shortened array file; a flipped bit in one loads without complaint as other numbers. Hence
the hashes, written before the step gets its name and verified before it is used. Two notes that Orbax writes after them
are deleted: nothing reads them, so nothing would notice their damage.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
import xxhash

from intellect_jax.files import sealed, unseal, write_text
from intellect_jax.monitor.room import wait_for_room
from intellect_jax.parallel.processes import everywhere, list_of_first, meet

log = logging.getLogger(__name__)

HASHES = "hashes.json"
NOTES = ("_CHECKPOINT_METADATA", "commit_success.txt")
_CHUNK = 16 << 20


class CheckpointError(Exception):
    """Checkpoints are there, but none can be used."""


class Damaged(Exception):
    """A checkpoint whose files are not those that were written."""


class Restored(NamedTuple):
    step: int
    state: Any
    ledger: dict[str, Any]


class Checkpoints:
    """The checkpoints under ``folder``; saving is asynchronous. The newest ``keep`` stay, and for good those of steps
    that ``keep_every`` divides (0: none).

    One writer at a time; of several processes all must call the same, on a file system that they share.
    ``read_only`` looks on: it neither saves nor tidies up.
    """

    def __init__(self, folder: Path | str, keep: int = 2, keep_every: int = 0, read_only: bool = False):
        self.folder = Path(folder).absolute()
        self.keep = keep
        self.keep_every = keep_every
        self.read_only = read_only
        self._manager = self._open()
        self._delete_notes()

    def save(self, step: int, state: Any, ledger: dict[str, Any]) -> None:
        """Copies ``state`` (a pytree of arrays) off the devices and returns; writing goes on in the background.

        ``state`` may be donated afterwards. Waits for room on the disk and for the save before it, and raises what went
        wrong there.
        """
        share = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) // jax.process_count()
        wait_for_room(self.folder, share, f"the checkpoint of step {step}")
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(state), ledger=ocp.args.JsonSave(ledger))
        if not self._manager.save(step, args=items, force=True):
            raise CheckpointError(f"{self.folder}: step {step} was not saved")
        self._delete_notes()

    def restore(self, abstract_state: Any, *, partial: bool = False, step: int | None = None) -> Restored | None:
        """The newest checkpoint that is whole (or that of ``step``), or None when there is none at all.

        ``abstract_state``: pytree of jax.ShapeDtypeStruct; leaves without a sharding go to the first device.
        ``partial``: it names only a part of the saved state. Damaged checkpoints newer than the one returned are
        logged and renamed out of the way. Raises CheckpointError when every checkpoint is damaged, or when one is
        whole but of another architecture.
        """
        damaged: list[int] = []
        for candidate in list_of_first(self.steps())[::-1] if step is None else [step]:
            if not self._is_whole(candidate):
                damaged.append(candidate)
                continue
            restored = self._read(candidate, abstract_state, partial)
            self._set_aside(damaged)
            return restored
        if damaged:
            raise CheckpointError(f"no checkpoint to use in {self.folder}: {damaged} damaged")
        return None

    def steps(self) -> list[int]:
        """Steps with a checkpoint, whole or damaged, in order."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())

    def wait(self) -> None:
        """Returns when the last save is on disk; raises what went wrong in it."""
        self._manager.wait_until_finished()
        self._delete_notes()

    def close(self) -> None:
        """Waits for the last save and lets go of the folder."""
        self._manager.wait_until_finished()
        self._delete_notes()
        self._manager.close()

    def _open(self) -> ocp.CheckpointManager:
        if self.read_only:
            options = ocp.CheckpointManagerOptions(read_only=True, save_interval_steps=0, create=False)
            return ocp.CheckpointManager(self.folder, options=options)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self.keep,
            keep_period=self.keep_every or None,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_hashes),
        )
        return ocp.CheckpointManager(self.folder, options=options)

    def _write_hashes(self) -> None:
        """For the step that was just written, which at this moment still has its temporary name."""
        for path in self.folder.iterdir() if jax.process_index() == 0 else ():
            if path.name[0].isdecimal() and not (path / HASHES).exists():
                write_text(path / HASHES, sealed(hash_files(path)))

    def _delete_notes(self) -> None:
        """Those of a killed process too."""
        if not self.read_only:
            for step in self.steps():
                for name in NOTES:
                    (self.folder / str(step) / name).unlink(missing_ok=True)

    def _read(self, step: int, abstract_state: Any, partial: bool) -> Restored:
        target = jax.tree.map(_placed, abstract_state)
        restore_args = ocp.checkpoint_utils.construct_restore_args(target)
        state = ocp.args.PyTreeRestore(target, restore_args=restore_args, partial_restore=partial)
        items = ocp.args.Composite(state=state, ledger=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=items)
        except (ValueError, KeyError, TypeError) as error:  # its files are those that were written
            raise CheckpointError(
                f"checkpoint {step} in {self.folder} is of another architecture or optimizer: {error}"
            ) from error
        return Restored(step, restored["state"], restored["ledger"])

    def _is_whole(self, step: int) -> bool:
        """Each process looks at its share of the files; all come to the same answer."""
        error: Damaged | str = "another process found it so"
        whole = True
        try:
            verify(self.folder / str(step), jax.process_index(), jax.process_count())
        except Damaged as found:
            error, whole = found, False
        if everywhere(whole):
            return True
        log.error("checkpoint %d is damaged and skipped: %s", step, error)
        return False

    def _set_aside(self, damaged: list[int]) -> None:
        """Renames damaged steps, so that the run can make them again and a person can look at them."""
        if not damaged or self.read_only:
            return
        self._manager.close()
        for step in damaged if jax.process_index() == 0 else ():
            number = len(list(self.folder.glob(f"damaged-{step}-*")))
            os.rename(self.folder / str(step), self.folder / f"damaged-{step}-{number}")
        meet("damaged checkpoints set aside")
        self._manager = self._open()


def hash_files(step_folder: Path) -> dict[str, str]:
    """xxh3_64 by relative path of every file of the state and the ledger."""
    files = (path for item in ("state", "ledger") for path in (step_folder / item).rglob("*") if path.is_file())
    return {str(path.relative_to(step_folder)): _hash(path) for path in sorted(files)}


def verify(step_folder: Path, part: int = 0, parts: int = 1) -> None:
    """Raises Damaged naming the first file of a checkpoint that is missing or not what was written.

    Of ``parts`` that look at a checkpoint together, this one looks at every file whose number leaves ``part``.
    """
    try:
        expected = unseal((step_folder / HASHES).read_bytes())
    except (OSError, ValueError) as error:
        raise Damaged(f"no usable {HASHES}: {error}") from error
    for name, right in list(expected.items())[part::parts]:
        try:
            if _hash(step_folder / name) != right:
                raise Damaged(f"{name} does not match its hash")
        except OSError as error:
            raise Damaged(f"{name} cannot be read: {error}") from error


def _hash(path: Path) -> str:
    digest = xxhash.xxh3_64()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    if leaf.sharding is not None:
        return leaf
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=first)
