"""Layers of two kinds fall into few repeated blocks, and every layer is in exactly one."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intellect_jax.models.layout import Block, blocks
from tests.policies import SMALL, of_family


def test_common_patterns_are_one_or_two_scans():
    glm = dataclasses.replace(SMALL, num_hidden_layers=46)
    assert blocks(glm) == (Block((False,), 1, 0, (0, 0)), Block((True,), 45, 1, (1, 0)))
    alternating = of_family("qwen3_moe", num_hidden_layers=48, decoder_sparse_step=2)
    assert blocks(alternating) == (Block((False, True), 24, 0, (0, 0)),)
    assert blocks(of_family("llama", num_hidden_layers=30)) == (Block((False,), 30, 0, (0, 0)),)


@given(layers=st.integers(1, 24), dense=st.sets(st.integers(0, 23)), step=st.integers(1, 4))
def test_blocks_spell_the_pattern(layers, dense, step):
    cfg = of_family("qwen3_moe", num_hidden_layers=layers, mlp_only_layers=tuple(dense), decoder_sparse_step=step)
    spelled: list[bool] = []
    for block in blocks(cfg):
        assert block.first == len(spelled)
        assert block.offsets == (spelled.count(False), spelled.count(True))
        spelled += block.kinds * block.repeats
    assert tuple(spelled) == cfg.moe_pattern


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"decoder_sparse_step": 2}, "DMDM"),
        ({"decoder_sparse_step": 3}, "DDMD"),
        ({"mlp_only_layers": (1, 3)}, "MDMD"),
        ({"mlp_only_layers": (1,), "decoder_sparse_step": 2}, "DDDM"),
    ],
)
def test_which_layers_are_mixtures_of_experts(changes, pattern):
    cfg = of_family("qwen3_moe", num_hidden_layers=4, **changes)
    assert "".join("DM"[moe] for moe in cfg.moe_pattern) == pattern
