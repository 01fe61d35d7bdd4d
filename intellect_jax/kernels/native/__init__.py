"""Kernels for a CPU in C++, which use all of its cores; compiled on the machine that runs them.

XLA's loops on a CPU use one core, and attention, experts and log-probabilities are loops. Where there is no compiler
for C++ those in plain XLA stand in: the same numbers but for rounding, in two to four times the time.
"""

from intellect_jax.kernels.native.library import call, usable

__all__ = ["call", "usable"]
