"""New weights into a running vLLM model, through the model's own loaders."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.platforms import current_platform

from intellect_jax.transport.safetensors_file import dtype_name

_TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
}


def reload_weights(model: torch.nn.Module, model_config: object, tensors: dict[str, np.ndarray]) -> None:
    """Puts every tensor (Hugging Face names) where it belongs, packed as this platform's kernels want it.

    In between the model holds placeholders: no engine step may run meanwhile, and after an exception none ever.
    """
    if current_platform.is_cpu():
        _forget_packed_experts(model)
    initialize_layerwise_reload(model)
    model.load_weights(_on_host(tensors))
    finalize_layerwise_reload(model, model_config)
    if current_platform.is_cpu():
        _pack_tied_heads(model)


def _forget_packed_experts(model: torch.nn.Module) -> None:
    """Else the experts stay the old ones, silently: on a CPU they are packed only where there is no kernel yet.

    Measured on vLLM 0.32: every call answers 200, and log-probabilities are wrong by about 1.
    """
    for module in model.modules():
        method = getattr(module, "quant_method", None)
        if method is not None and getattr(method, "moe_kernel", None) is not None:
            method.moe_kernel = None


def _pack_tied_heads(model: torch.nn.Module) -> None:
    """Else a head that shares the embedding's weights stays the old one, silently: its own load is empty, so that on
    a CPU nothing packs it anew.

    Measured on vLLM 0.32 with SmolLM2: every call answers 200, and each token is as likely as any other.
    """
    modules = list(model.modules())
    heads = [module for module in modules if isinstance(module, ParallelLMHead)]
    embeddings = {id(m.weight) for m in modules if isinstance(m, VocabParallelEmbedding) and m not in heads}
    for head in heads:
        if id(head.weight) in embeddings:
            head.quant_method.process_weights_after_loading(head)


def _on_host(tensors: dict[str, np.ndarray]) -> Iterator[tuple[str, torch.Tensor]]:
    """The same memory as PyTorch tensors, which has no bfloat16 in common with numpy."""
    for name, array in tensors.items():
        raw = torch.from_numpy(np.ascontiguousarray(array).view(np.uint8).reshape(-1))
        yield name, raw.view(_TORCH[dtype_name(array.dtype)]).reshape(array.shape)
