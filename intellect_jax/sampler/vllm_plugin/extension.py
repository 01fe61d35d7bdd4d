"""What each of vLLM's workers imports (``--worker-extension-cls``): it makes our backend known under its name."""

from __future__ import annotations

from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from intellect_jax.sampler.vllm_plugin import BACKEND

WeightTransferEngineFactory.register_engine(BACKEND, "intellect_jax.sampler.vllm_plugin.engine", "ManifestEngine")


class Extension:
    """vLLM mixes this into its worker's class: nothing is added to it."""
