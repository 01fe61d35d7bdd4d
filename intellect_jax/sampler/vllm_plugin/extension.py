"""What each of vLLM's workers imports (``--worker-extension-cls``): it makes our backend known under its name."""

from __future__ import annotations

from typing import Any

from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.platforms import current_platform

from intellect_jax.sampler.vllm_plugin import BACKEND
from intellect_jax.sampler.vllm_plugin.ancestors import end_with_server
from intellect_jax.sampler.vllm_plugin.rounding import normalise_logprobs

WeightTransferEngineFactory.register_engine(BACKEND, "intellect_jax.sampler.vllm_plugin.engine", "ManifestEngine")


end_with_server()


class Extension:
    """vLLM mixes this into its worker's class: what ``/collective_rpc`` may call of ours."""

    weight_transfer_engine: Any  # vLLM's worker has it, and it is a ManifestEngine
    model_runner: Any  # vLLM's worker has it
    _first_version_read = False

    def read_version(self, manifest: str, version: str) -> None:
        """Begins to read a version on a thread; the model samples on."""
        if current_platform.is_cpu() and not self._first_version_read:
            normalise_logprobs(self.model_runner.sampler)
        self._first_version_read = True
        self.weight_transfer_engine.begin_reading(manifest, version)

    def version_read(self, version: str) -> dict[str, Any]:
        """How that stands: ``done``, and the ``error`` if there was one."""
        return self.weight_transfer_engine.reader.state(version)
