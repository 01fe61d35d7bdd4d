"""From a published manifest to parameters on the device, verified before anything is placed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np

from intellect_jax.bridge.huggingface import from_hf
from intellect_jax.models.config import ModelConfig
from intellect_jax.models.transformer import Params, abstract_params
from intellect_jax.transport.relay.intake import Intake
from intellect_jax.types import Version

_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def load(intake: Intake, manifest: str, model: ModelConfig, dtype: str) -> tuple[Params, Version]:
    """Parameters of a published version (path or URL of its manifest), to which ``intake`` is brought; raises
    WeightError for damaged files, ValueError for another model's."""
    version = intake.advance(manifest)
    return placed(intake.mirror.tensors, model, dtype), version


def placed(tensors: dict[str, np.ndarray], model: ModelConfig, dtype: str) -> Params:
    """The policy of a version's tensors, by Hugging Face name, on the device; at no time is it all in float32."""
    return place(from_hf(tensors.__getitem__, tensors, model, dtype, keep_float32=_of_router), dtype)


def place(params: Params, dtype: str) -> Params:
    """Puts a tree on the device in what the engine computes in; the router stays float32, as it computes."""
    cast = jax.tree_util.tree_map_with_path(lambda path, leaf: _cast(path, leaf, _DTYPES[dtype]), params)
    return jax.device_put(cast)


def zeros(model: ModelConfig, dtype: str) -> Params:
    """Parameters to compile with."""
    return place(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract_params(model)), dtype)


def _cast(path: tuple[Any, ...], leaf: np.ndarray, dtype: np.dtype) -> np.ndarray:
    in_router = _of_router([getattr(key, "key", None) for key in path])
    return np.asarray(leaf) if in_router else np.asarray(leaf).astype(dtype, copy=False)


def _of_router(path: Sequence[str | None]) -> bool:
    return "router" in path
