"""The loader calls that a model made for one version, so that the next version need not find them again.

A model's ``load_weights`` maps each name to a parameter, and vLLM calls its loader twice, once to count: a third of a
millisecond of Python (two cores, vLLM 0.32) for each of 17,000 tensors, if a model has 46 layers of 128 experts, while
no token is made. Every version has the same names, shapes and dtypes (``engine.refuse_other_model``), so that the calls
differ in their tensors alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class _Part:
    """A view of one of the version's tensors."""

    name: str
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int  # elements

    def of(self, tensors: Tensors) -> torch.Tensor:
        return torch.as_strided(tensors[self.name], self.size, self.stride, self.offset)


@dataclass(frozen=True)
class _Call:
    """One call of a parameter's loader: what it was given, with parts in the place of tensors."""

    parameter: str
    signature: inspect.Signature
    arguments: dict[str, Any]

    def parts(self) -> list[_Part]:
        return [value for value in self.arguments.values() if isinstance(value, _Part)]

    def of(self, tensors: Tensors) -> inspect.BoundArguments:
        filled = {k: v.of(tensors) if isinstance(v, _Part) else v for k, v in self.arguments.items()}
        return inspect.BoundArguments(self.signature, filled)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Calls:
    """Of each layer its calls, in order, and the names that no such call took: those go through the model each time."""

    layers: list[tuple[torch.nn.Module, list[_Call]]]
    others: frozenset[str]


class Recorder:
    """Made between vLLM's ``initialize_layerwise_reload`` and the model's ``load_weights``, read after them."""

    def __init__(self, model: torch.nn.Module):
        # vLLM gives a layer that is done a new list, and these keep what was called.
        self._lists = [(layer, get_layerwise_info(layer).loaded_weights) for layer in model.modules()]

    def calls(self, tensors: Tensors) -> Calls | None:
        """None where a loader was given something computed: that version's calls can't serve another."""
        sources = {tensor.untyped_storage().data_ptr(): name for name, tensor in tensors.items()}
        layers: list[tuple[torch.nn.Module, list[_Call]]] = []
        for layer, loaded in self._lists:
            found = [_call(parameter, bound, sources, tensors) for parameter, bound in loaded]
            if not all(found):
                return None
            layers.append((layer, [call for call in found if call]))
        taken = {part.name for _, calls in layers for call in calls for part in call.parts()}
        return Calls([(layer, calls) for layer, calls in layers if calls], frozenset(tensors.keys() - taken))


def replay(calls: Calls, tensors: Tensors) -> Iterator[tuple[str, torch.Tensor]]:
    """Hands every layer its tensors; returns those that the model has to be given.

    vLLM's ``finalize_layerwise_reload`` then makes, loads and packs the layers, one after the other.
    """
    for layer, its in calls.layers:
        info = get_layerwise_info(layer)
        info.loaded_weights[:] = [(call.parameter, call.of(tensors)) for call in its]
        info.load_numel = info.load_numel_total / 2  # what is begun and not complete is processed then
    return ((name, tensors[name]) for name in sorted(calls.others))


def _call(parameter: str, bound: inspect.BoundArguments, sources: dict[int, str], tensors: Tensors) -> _Call | None:
    arguments: dict[str, Any] = {}
    for key, value in bound.arguments.items():
        if key == "param":
            arguments[key] = None  # vLLM puts the new one here
        elif isinstance(value, torch.Tensor):
            name = sources.get(value.untyped_storage().data_ptr())
            if name is None or value.dtype != tensors[name].dtype:
                return None
            arguments[key] = _Part(name, tuple(value.shape), value.stride(), value.storage_offset())
        elif value is None or isinstance(value, str | int):
            arguments[key] = value
        else:
            return None
    return _Call(parameter, bound.signature, arguments)
