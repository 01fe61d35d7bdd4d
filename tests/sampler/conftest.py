"""One engine a module: compiling it is what takes time."""

from __future__ import annotations

import pytest

from tests.samplers import install, running, sampler_config


@pytest.fixture(scope="module")
def state():
    """A started engine that samples from ``random_params(SMALL, 0)`` as version 0.0."""
    with running(sampler_config()) as started:
        install(started, 0)
        yield started
