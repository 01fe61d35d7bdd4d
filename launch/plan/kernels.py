"""FLOPs of hand-written kernels that a compiled program names but does not show, from their arguments' shapes."""

from __future__ import annotations

from math import prod

from launch.plan.hlo import Computation, Instruction


def known_kernel(name: str, where: Computation, instruction: Instruction) -> float:
    """Of one execution; 0 for kernels that are not known.

    tokamax's attention over causal ranges of keys does half of the products: two forward; backward four in the kernel
    that makes the gradients of keys and values, three in that of queries. Its grouped matmuls take rows sorted by
    expert, [rows, inner] and [experts, inner, outer].
    """
    shapes = [where.instructions[operand].shape.dims for operand in instruction.operands[:2]]
    if len(shapes) < 2:
        return 0.0
    if "FlashAttention" in name:
        queries, keys = shapes
        products = 2 if not name.endswith("Vjp") else 4 if len(instruction.shapes) > 1 else 3
        return products * prod(queries) * float(keys[-3])
    if "RaggedDot" in name and len(shapes[0]) == 2:
        rows, _ = shapes[0]
        matrix = shapes[1] if len(shapes[1]) == 3 else instruction.shape.dims
        return 2.0 * rows * prod(matrix[-2:])
    return 0.0
