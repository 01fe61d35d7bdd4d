"""What of a layer's forward pass is kept for its backward pass, by name; the rest is computed again.

The layers tag their tensors (``jax.ad_checkpoint.checkpoint_name``) with these names:

- ``layer``      a layer's input [B, S, D]. It is always kept; by this name it can be kept on the host.
- ``qkv``        rotated queries, rotated keys, values [B, S, heads, C]
- ``attention``  the attention operation's output [B, S, H, C], and what else its own backward pass reads
- ``residual``   the stream after the attention half [B, S, D]
- ``mlp``        results of the matrix products of dense and of shared MLPs [B, S, F], of routed experts (a row for each
                 choice of a token) and of the router
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from intellect_jax.parallel.memory import HOST

NAMES: dict[str, tuple[str, ...]] = {
    "full": (),
    "attention": ("qkv", "attention", "residual"),
    "matmuls": ("qkv", "attention", "residual", "mlp"),
}


class Remat(NamedTuple):
    """``name``: none, which keeps everything, or a key of NAMES. ``offload``: what is kept is kept on the host."""

    name: str = "none"
    offload: bool = False


KEEP_ALL = Remat()


def rematerialised(layer: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """``layer``, whose first argument is static, under the policy."""
    if remat.name == "none":
        return layer
    names = NAMES[remat.name]
    if remat.offload:
        policy = jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=(),
            names_which_can_be_offloaded=("layer", *names),
            offload_src="device",
            offload_dst=HOST,
        )
    else:
        policy = jax.checkpoint_policies.save_only_these_names(*names)
    return jax.checkpoint(layer, prevent_cse=False, static_argnums=0, policy=policy)
