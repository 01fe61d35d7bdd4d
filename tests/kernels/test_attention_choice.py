from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from intellect_jax.errors import UserError
from intellect_jax.kernels.attention.choice import best, refuse_misfit
from intellect_jax.kernels.attention.chunked import Tokens
from intellect_jax.kernels.attention.plain import packed_attention, packed_mask
from intellect_jax.parallel.context import zigzag
from tests.kernels.attention_cases import assert_close, output_and_gradients, packed_case


def test_the_best_by_platform_length_and_numbers():
    assert best("cpu", 32, jnp.float32) == "plain" and best("cpu", 4096, jnp.bfloat16) == "native"
    assert best("tpu", 4096, jnp.float32) == "splash"
    assert best("gpu", 4096, jnp.float32) == "chunked"  # tokamax's kernels take 16 bits


def test_without_our_kernels_a_cpu_attends_in_blocks(monkeypatch):
    monkeypatch.setenv("INTELLECT_JAX_NATIVE", "0")
    assert best("cpu", 4096, jnp.bfloat16) == "chunked"
    with pytest.raises(UserError, match=r"trainer.attention=native: needs a C\+\+ compiler"):
        refuse_misfit("native", jax.devices("cpu")[0])


def test_a_kernel_of_another_platform_is_refused():
    cpu = jax.devices("cpu")[0]
    refuse_misfit("auto", cpu)
    with pytest.raises(UserError, match=r"trainer.attention=splash: runs on tpu, and the trainer's devices are cpu"):
        refuse_misfit("splash", cpu)


def test_the_ranges_of_keys_that_flash_attention_is_given():
    """Without a GPU: tokamax's own reference, given our ranges, against ours."""
    pytest.importorskip("tokamax")
    from tokamax._src.ops.attention.base import DotProductAttention

    from intellect_jax.kernels.attention import flash

    case = packed_case(2, 200, 4, 2, 16, 5)

    def ranges(q, k, v, segment_ids, positions):
        return DotProductAttention()(q, k, v, mask=flash._causal(jnp.arange(200) - positions))

    expected = jax.jit(partial(output_and_gradients, packed_attention))(case)
    assert_close(jax.jit(partial(output_and_gradients, ranges))(case), expected, 1e-5)


def test_what_a_query_sees_of_another_device_in_zigzag_is_one_range():
    pytest.importorskip("tokamax")
    from intellect_jax.kernels.attention import flash

    case = packed_case(1, 256, 1, 1, 4, 9)
    ids, positions = (zigzag.shuffle(x, 4) for x in case[3:])
    mask = np.asarray(packed_mask(ids, positions))[0] & (np.asarray(ids)[0] > 0)
    for queries in range(4):
        for keys in range(4):
            mine, theirs = (slice(64 * n, 64 * (n + 1)) for n in (queries, keys))
            parts = (Tokens(ids[:, at], positions[:, at]) for at in (mine, theirs))
            start, stop = (np.asarray(x)[0, :64, None] for x in flash._ranges(*parts))
            index = np.arange(64)
            np.testing.assert_array_equal((start <= index) & (index < stop), mask[mine, theirs])
