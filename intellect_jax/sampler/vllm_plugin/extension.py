"""What each of vLLM's workers imports (``--worker-extension-cls``): it makes our backend known under its name."""

from __future__ import annotations

from typing import Any

from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from intellect_jax.sampler.vllm_plugin import BACKEND
from intellect_jax.sampler.vllm_plugin.ancestors import end_with_server

WeightTransferEngineFactory.register_engine(BACKEND, "intellect_jax.sampler.vllm_plugin.engine", "ManifestEngine")


end_with_server()


class Extension:
    """vLLM mixes this into its worker's class: what ``/collective_rpc`` may call of ours."""

    weight_transfer_engine: Any  # vLLM's worker has it, and it is a ManifestEngine

    def read_version(self, manifest: str, version: str) -> None:
        """Begins to read a version on a thread; the model samples on."""
        self.weight_transfer_engine.begin_reading(manifest, version)

    def version_read(self, version: str) -> dict[str, Any]:
        """How that stands: ``done``, and the ``error`` if there was one."""
        return self.weight_transfer_engine.reader.state(version)
