"""What turns gradients into steps: AdamW or Muon, how their state is stored, and learning-rate schedules."""

from intellect_jax.trainer.optimizer.build import Optimizer, decay_mask, make_optimizer
from intellect_jax.trainer.optimizer.schedules import rl_rates, sft_rates
from intellect_jax.trainer.optimizer.storage import is_moment

__all__ = ["Optimizer", "decay_mask", "is_moment", "make_optimizer", "rl_rates", "sft_rates"]
