"""Counts XLA compilations, so that a program that recompiles in its hot loop is seen."""

from __future__ import annotations

import threading

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"


class CompilationCounter:
    """Compilations of this process since :meth:`warm`; any thread may read it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._at_warm: int | None = None
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def warm(self) -> None:
        """Call once everything that may compile has compiled: what follows counts."""
        with self._lock:
            self._at_warm = self._count

    @property
    def after_warmup(self) -> int:
        """Compilations since :meth:`warm`; 0 before it."""
        with self._lock:
            return 0 if self._at_warm is None else self._count - self._at_warm

    def _on_event(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == _COMPILED:
            with self._lock:
                self._count += 1
