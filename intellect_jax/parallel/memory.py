"""Memory beside the devices' own."""

from __future__ import annotations

import jax
from ml_collections import ConfigDict

from intellect_jax.errors import UserError

HOST = "pinned_host"  # JAX's name of host memory that a device reads and writes by itself


def refuse_missing_memory(config: ConfigDict, device: jax.Device) -> None:
    """Raises UserError where something is to be kept in host memory and ``device`` cannot reach any."""
    asked = {
        "trainer.optimizer.offload": config.trainer.optimizer.offload,
        "trainer.offload_activations": config.trainer.offload_activations,
    }
    kinds = [memory.kind for memory in device.addressable_memories()]
    for key, wanted in asked.items():
        if wanted and HOST not in kinds:
            raise UserError(f"{key}=True: this {device.platform} device has {', '.join(kinds)} memory: set it to False")
