"""New weights into a running vLLM model, through the model's own loaders."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.platforms import current_platform

from intellect_jax.sampler.vllm_plugin.replay import Calls, Recorder, Tensors, replay
from intellect_jax.sampler.vllm_plugin.rounding import add_up_in_parts, unpack_heads
from intellect_jax.transport.safetensors_file import dtype_name

log = logging.getLogger(__name__)

SLOWLY = "this model's loaders are given what it computes: every update takes as long as the first"

_TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
}


class Loader:
    """Puts versions into one model; the second and later ones by what the first has taught (see ``replay``)."""

    def __init__(self, model: torch.nn.Module, model_config: object):
        self.model, self.model_config = model, model_config
        self._calls: Calls | None = None

    def load(self, tensors: dict[str, np.ndarray]) -> None:
        """Puts every tensor (Hugging Face names) where it belongs."""
        given = dict(_on_host(tensors))
        with self.reloading():
            if self._calls is None:
                self._calls = self._learn(given)
            else:
                self.model.load_weights(replay(self._calls, given))

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """Inside, the model takes new weights; at the end they are packed as this platform's kernels want them.

        In between the model holds placeholders: no engine step may run meanwhile, and after an exception none ever.
        """
        if current_platform.is_cpu():
            _forget_packed_experts(self.model)
            add_up_in_parts(self.model)
        initialize_layerwise_reload(self.model)
        yield
        finalize_layerwise_reload(self.model, self.model_config)
        if current_platform.is_cpu():
            unpack_heads(self.model)

    def _learn(self, given: Tensors) -> Calls | None:
        recorder = Recorder(self.model)
        self.model.load_weights(given.items())
        calls = recorder.calls(given)
        if calls is None:
            log.warning(SLOWLY)
        return calls


def _forget_packed_experts(model: torch.nn.Module) -> None:
    """Else the experts stay the old ones, silently: on a CPU they are packed only where there is no kernel yet.

    Measured on vLLM 0.32: every call answers 200, and log-probabilities are wrong by about 1.
    """
    for module in model.modules():
        method = getattr(module, "quant_method", None)
        if method is not None and getattr(method, "moe_kernel", None) is not None:
            method.moe_kernel = None


def _on_host(tensors: dict[str, np.ndarray]) -> Iterator[tuple[str, torch.Tensor]]:
    """The same memory as PyTorch tensors, which has no bfloat16 in common with numpy."""
    for name, array in tensors.items():
        raw = torch.from_numpy(np.ascontiguousarray(array).view(np.uint8).reshape(-1))
        yield name, raw.view(_TORCH[dtype_name(array.dtype)]).reshape(array.shape)
