"""What of the policy's computation depends on the mesh and the hardware. The models call these and know neither.

``parallel/ops.py`` makes the ones of a mesh; the defaults are those of one device.
Shape suffixes: B batch, S sequence, D embed, V vocabulary, H query heads, K key/value heads, C head width, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Array, Float, Int

from intellect_jax.kernels.attention import packed_attention
from intellect_jax.kernels.grouped_matmul import LowRank, expert_mlp
from intellect_jax.kernels.logprobs import member_logprobs
from intellect_jax.kernels.products import plain


def local_experts(
    x: Float[Array, "b s d"],
    ids: Int[Array, "b s k"],
    weights: Float[Array, "b s k"],
    gate: Float[Array, "e d f"],
    up: Float[Array, "e d f"],
    down: Float[Array, "e f d"],
    low_rank: LowRank | None = None,
) -> Float[Array, "b s d"]:
    """:func:`expert_mlp` of all tokens of the batch."""
    k = ids.shape[-1]
    return expert_mlp(
        x.reshape(-1, x.shape[-1]), ids.reshape(-1, k), weights.reshape(-1, k), gate, up, down, low_rank
    ).reshape(x.shape)


def unconstrained(x: Array, *axes: str | None) -> Array:
    return x


def in_place(x: Array) -> Array:
    return x


@dataclass(frozen=True)
class Ops:
    """Hashable, so that a compiled program may depend on it.

    ``attention(q, k, v, segment_ids, positions)``: see ``kernels.attention.packed_attention``. What its backward pass
    needs besides its inputs is tagged ``attention`` (see remat.py).
    ``experts(x, ids, weights, gate, up, down, low_rank)``: see :func:`local_experts`. It tags matrix products ``mlp``.
    ``logprobs(hidden, kernel, targets, temperature, members)``: see ``kernels.logprobs.member_logprobs``.
    ``product(x, w, axes)``: of the linear layers, see ``kernels.products``.
    ``constrain(x, *axes)``: ``x`` with its dimensions laid out by their logical axes.
    ``unrolled``: a loop over at most so many layers that keeps all activations is compiled without the loop.
    ``shuffle``, ``unshuffle``: arrays [B, S, ...] from a row's order to that in which its parts are held, and back.
    """

    attention: Callable[..., Array] = packed_attention
    experts: Callable[..., Array] = local_experts
    logprobs: Callable[..., tuple[Array, Array]] = member_logprobs
    product: Callable[[Array, Array, int], Array] = plain
    constrain: Callable[..., Array] = unconstrained
    unrolled: int = 1
    shuffle: Callable[[Array], Array] = in_place
    unshuffle: Callable[[Array], Array] = in_place


LOCAL = Ops()
