"""Log-probability and entropy of given tokens from hidden states and the head, a file for each way to compute them."""

from intellect_jax.kernels.logprobs.choice import differentiable, member_logprobs
from intellect_jax.kernels.logprobs.plain import PerToken, token_logprobs

__all__ = ["PerToken", "differentiable", "member_logprobs", "token_logprobs"]
