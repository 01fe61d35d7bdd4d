"""FLOPs of a traced program: loops by their lengths, before any compiler has touched it.

An independent count beside that of the compiled program, and the only one that sees into hand-written kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

from jax.extend import core


def matmul_flops(closed: core.ClosedJaxpr) -> float:
    """Of all devices together, by dots alone; of a conditional the dearer branch, of a ``while`` one iteration."""
    return _flops(closed.jaxpr)


def kernel_flops(closed: core.ClosedJaxpr) -> dict[str, float]:
    """FLOPs of one execution, on one device, of each Pallas kernel by name; of kernels that share one, the mean."""
    found: dict[str, list[float]] = {}
    for equation in _equations(closed.jaxpr):
        if equation.primitive.name == "pallas_call":
            found.setdefault(_kernel_name(equation), []).append(_equation_flops(equation))
    return {name: sum(flops) / len(flops) for name, flops in found.items()}


def _kernel_name(equation: Any) -> str:
    name = equation.params.get("name") or getattr(equation.params.get("name_and_src_info"), "name", "")
    return name or "pallas_call"


def _flops(jaxpr: core.Jaxpr) -> float:
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _dot_flops(equation, *params["dimension_numbers"][0])
    if name == "ragged_dot_general":
        return _ragged_flops(equation, params["ragged_dot_dimension_numbers"])
    if name == "pallas_call":
        return _pallas_flops(params)
    if name == "cond":
        return max(_flops(branch.jaxpr) for branch in params["branches"])
    times = params["length"] if name == "scan" else 1
    if name == "shard_map":
        times = prod(params["mesh"].shape[axis] for axis in params.get("manual_axes", params["mesh"].axis_names))
    return times * sum(_flops(inner) for inner in core.jaxprs_in_params(params))


def _dot_flops(equation: Any, left: tuple[int, ...], _right: tuple[int, ...]) -> float:
    return 2.0 * prod(equation.outvars[0].aval.shape) * prod(equation.invars[0].aval.shape[d] for d in left)


def _ragged_flops(equation: Any, numbers: Any) -> float:
    """Rows that belong to groups count once, whichever of the three products of a grouped matmul it is."""
    left, right = numbers.dot_dimension_numbers[0]
    if set(numbers.lhs_ragged_dimensions) & set(left):  # groups of rows are summed over: a weight's gradient
        lhs, rhs = (invar.aval.shape for invar in equation.invars[:2])
        return 2.0 * prod(lhs) * prod(size for d, size in enumerate(rhs) if d not in right)
    return _dot_flops(equation, left, right)


def _pallas_flops(params: dict[str, Any]) -> float:
    """What the kernel's author says, else the dots of its body times its grid."""
    estimate = params.get("cost_estimate")
    if estimate is not None:
        return float(estimate.flops)
    return _flops(params["jaxpr"]) * prod(params["grid_mapping"].grid)


def _equations(jaxpr: core.Jaxpr) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for inner in core.jaxprs_in_params(equation.params):
            yield from _equations(inner)
