"""Versions out of the trainer: in full, or what changed where that is fewer bytes."""

from __future__ import annotations

from pathlib import Path

import jax
from ml_collections import ConfigDict

from intellect_jax.bridge import plan
from intellect_jax.bridge.policy import Policy
from intellect_jax.bridge.published import Published
from intellect_jax.bridge.save import policy_tensors
from intellect_jax.config import makes_deltas
from intellect_jax.monitor.room import wait_for_room
from intellect_jax.parallel.processes import gathered, meet
from intellect_jax.transport.changes import TooMany
from intellect_jax.transport.deltas import Changed
from intellect_jax.transport.nccl.group import Lying
from intellect_jax.transport.weights import WeightStore
from intellect_jax.types import Version

_BYTES = 1.1  # of a coded change, about


class Publisher:
    """Every process of the trainer has one, and all publish each version together.

    A version is a delta to the one before. It is there in full too when there is none before, when a delta would not be
    smaller, and when all deltas since the last full one are together as large: so no reader ever needs more bytes than
    two full versions.
    """

    def __init__(self, config: ConfigDict, store: WeightStore):
        self.store = store
        self._dtype = config.weights.dtype
        self._deltas = makes_deltas(config)
        self._published: Published | None = None
        self._version: Version | None = None
        self._since_full = 0.0  # bytes of deltas

    def publish(self, version: Version, policy: Policy, *, replace_damaged: bool = False) -> Path:
        """Writes the version; returns its manifest. ``replace_damaged``: the one before once more, in full."""
        changed = None if replace_damaged else self._changed(policy)
        whole = sum(tensor.nbytes for tensor in plan.outputs(policy.config, self._dtype, None))
        elements = sum(each.changes.where.size for each in changed or ())
        # Of several processes all must decide alike. In thousands: what they gather are 32-bit numbers.
        refused, thousands = gathered([changed is None, elements // 1000 + 1]).sum(axis=0)
        nbytes = _BYTES * 1000 * float(thousands)
        pays = not refused and nbytes < whole
        self._since_full += nbytes
        full = not pays or self._since_full >= whole
        if full:
            self._since_full = 0.0
        base, self._version = self._version, version
        part, parts = jax.process_index(), jax.process_count()
        wait_for_room(self.store.folder, int((full * whole + pays * nbytes) / parts), f"version {version}")
        return self.store.publish(
            version,
            policy_tensors(policy, self._dtype, part, parts) if full else None,
            delta=(base, changed) if pays and base and changed is not None else None,
            replace_damaged=replace_damaged,
            part=part,
            parts=parts,
            meet=meet,
        )

    def lying(self) -> list[Lying]:
        """The last version's tensors on the device, for which ``makes_deltas`` must hold; raises UserError."""
        assert self._published is not None
        return self._published.lying()

    def _changed(self, policy: Policy) -> list[Changed] | None:
        """What changed since the last version; None without one, or when it is too much."""
        if not self._deltas:
            return None
        if self._published is None:
            self._published = Published(policy.params, policy.config, self._dtype)
            self._published.advance(policy.params)  # nothing changed: what the next ones run is compiled here
            return None
        try:
            return self._published.advance(policy.params)
        except TooMany:
            return None
