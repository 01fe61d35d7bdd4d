"""Building blocks: parameters with logical axes, norms, dense MLP.

Shape suffixes: B batch, S sequence, D embed, F MLP width, H query heads, K key/value heads, C head width.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from intellect_jax.kernels.products import plain

Product = Callable[[Array, Array, int], Array]  # see kernels/products.py


def param(rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str | None, ...], scale: float) -> nnx.Param:
    """A float32 normal(0, scale) parameter whose dimensions carry logical axis names (see parallel/mesh.py)."""
    return nnx.Param(scale * jax.random.normal(rngs.params(), shape, jnp.float32), out_sharding=axes)


def constant(value: float, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> nnx.Param:
    return nnx.Param(jnp.full(shape, value, jnp.float32), out_sharding=axes)


def rms_norm(x: Float[Array, "... d"], scale: Float[Array, " d"], eps: float) -> Float[Array, "... d"]:
    """Root-mean-square norm over the last axis, computed in float32 (Zhang and Sennrich, arXiv 1910.07467)."""
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return normed.astype(x.dtype) * scale.astype(x.dtype)


class RMSNorm(nnx.Module):
    def __init__(self, size: int, eps: float, axis: str | None = None):
        self.scale = constant(1.0, (size,), (axis,))
        self.eps = eps

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        return rms_norm(x, self.scale.get_value(), self.eps)


class Linear(nnx.Module):
    """x @ kernel (+ bias); ``kernel`` may map one input axis to several output axes or several to one.

    An adapter (see lora.py) that was attached as ``lora`` adds (x @ a) @ b.
    """

    def __init__(self, rngs, shape, axes, scale: float, bias_axes: int = 0, contract: int = 1):
        self.kernel = param(rngs, shape, axes, scale)
        if bias_axes:
            self.bias = constant(0.0, shape[-bias_axes:], axes[-bias_axes:])
        self.contract = contract

    def __call__(self, x: Array, product: Product = plain) -> Array:
        y = product(x, self.kernel.get_value().astype(x.dtype), self.contract)
        if hasattr(self, "lora"):
            a, b = (self.lora[name].get_value().astype(x.dtype) for name in ("a", "b"))
            y = y + jnp.tensordot(jnp.tensordot(x, a, axes=self.contract), b, axes=1)
        return y + self.bias.get_value().astype(x.dtype) if hasattr(self, "bias") else y


class MLP(nnx.Module):
    """SwiGLU: down(silu(gate x) * up x)."""

    def __init__(self, rngs: nnx.Rngs, hidden: int, width: int, scale: float):
        self.gate = Linear(rngs, (hidden, width), ("embed", "mlp"), scale)
        self.up = Linear(rngs, (hidden, width), ("embed", "mlp"), scale)
        self.down = Linear(rngs, (width, hidden), ("mlp", "embed"), scale)

    def __call__(self, x: Float[Array, "... d"], product: Product = plain) -> Float[Array, "... d"]:
        gate, up = (checkpoint_name(linear(x, product), "mlp") for linear in (self.gate, self.up))
        return self.down(jax.nn.silu(gate) * up, product)
