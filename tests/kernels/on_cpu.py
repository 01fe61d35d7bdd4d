"""What a CPU computes with: our kernels in C++ (``native``), or plain XLA where nothing can compile them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest

from intellect_jax.kernels.native import library, usable
from tests.policies import quick_jit

WAYS = ("native", "xla")


@contextmanager
def computing(way: str) -> Iterator[None]:
    """What is traced meanwhile is computed this way. (Not by the environment: XLA's threads read it at any time.)"""
    with mock.patch.object(library, "_wanted", lambda: way == "native"):
        if way == "native":
            require_kernels()
        yield


def require_kernels() -> None:
    """Skips without any compiler; where there is one, kernels that it cannot compile are a failure."""
    try:
        library._compiler()
    except OSError as error:
        pytest.skip(str(error))
    assert usable()


def both(function: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """The function compiled either way, when it is called first."""

    def compiled(way: str) -> Callable[..., Any]:
        program = quick_jit(lambda *args: function(*args))  # a function of its own: programs are kept by it

        def run(*args):
            with computing(way):
                return program(*args)

        return run

    return {way: compiled(way) for way in WAYS}
