"""What a step says of its batch."""

import numpy as np

from intellect_jax.trainer.report import count_tokens, token_metrics
from intellect_jax.types import PackedBatch


def test_staleness_is_counted_over_trained_tokens_of_the_policy():
    mask = np.array([[[True, True, True, True, False, True]]])
    staleness = np.array([[[0, 2, 2, 5, 3, -1]]], np.int32)  # a masked token, and one that the policy did not write
    batch = PackedBatch(1, {"loss_mask": mask, "staleness": staleness, "segment_ids": np.ones((1, 1, 6), np.int32)})
    counts = token_metrics(count_tokens(batch))
    histogram = {name: count for name, count in counts.items() if name.startswith("staleness/hist_")}
    assert histogram == {"staleness/hist_0": 1, "staleness/hist_2": 2, "staleness/hist_5": 1}
    assert counts["staleness/mean"] == 9 / 4 and counts["staleness/max"] == 5 and counts["mismatch/fresh_count"] == 1


def test_a_batch_without_sampled_tokens_has_no_histogram():
    empty = np.zeros((1, 1, 2), bool)
    arrays = {"loss_mask": empty, "staleness": np.full((1, 1, 2), -1, np.int32), "segment_ids": empty.astype(np.int32)}
    assert not [
        name for name in token_metrics(count_tokens(PackedBatch(1, arrays))) if name.startswith("staleness/hist_")
    ]
