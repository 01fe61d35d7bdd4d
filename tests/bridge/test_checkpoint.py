"""Checkpoints come back bit-identical, and a damaged one is noticed, skipped and said so."""

import dataclasses
import logging
import os
import shutil
import signal
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest

from intellect_jax.bridge.checkpoint import NOTES, CheckpointError, Checkpoints
from tests.policies import SMALL, assert_trees_equal, random_params


class State(NamedTuple):
    params: dict
    optimizer: tuple
    step: jax.Array


def make_state(step: int, cfg=SMALL) -> State:
    params = jax.device_put(random_params(cfg, seed=step))
    return State(params, optax.adamw(1e-3).init(params), jnp.int32(step))


def abstract(state: State) -> State:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with checkpoints 1 and 2; tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(folder, keep=2)
    for step in (0, 1, 2):
        checkpoints.save(step, make_state(step), {"next_task": 10 * step})
    checkpoints.close()
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def restore(folder, state=None, partial=False, **options):
    checkpoints = Checkpoints(folder, **options)
    try:
        return checkpoints.restore(abstract(make_state(0)) if state is None else state, partial=partial)
    finally:
        checkpoints.close()


def test_the_newest_comes_back_bit_identical_with_its_ledger(saved):
    restored = restore(saved, read_only=True)
    assert (restored.step, restored.ledger) == (2, {"next_task": 20})
    assert_trees_equal(restored.state, make_state(2))
    assert sorted(path.name for path in saved.iterdir()) == ["1", "2"]  # 0 was pruned


def test_steps_that_keep_every_divides_stay_for_good(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, keep_every=3)
    for step in range(1, 9):
        checkpoints.save(step, {"x": jnp.full(4, step)}, {})
    checkpoints.close()
    assert checkpoints.steps() == [3, 6, 7, 8]
    assert restore(tmp_path, {"x": jax.ShapeDtypeStruct((4,), jnp.int32)}, read_only=True).step == 8


def test_nothing_there_is_not_an_error(tmp_path):
    assert restore(tmp_path / "new") is None


def test_a_state_that_is_donated_right_after_saving_is_saved_as_it_was(tmp_path):
    state = make_state(5)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, state, {})
    changed = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 7, s), donate_argnums=0)(state)
    jax.block_until_ready(changed)
    checkpoints.wait()
    assert_trees_equal(checkpoints.restore(abstract(changed)).state, make_state(5))
    checkpoints.close()


def test_a_part_of_the_state_can_be_restored(saved):
    checkpoints = Checkpoints(saved, read_only=True)
    restored = checkpoints.restore({"params": abstract(make_state(0)).params}, partial=True)
    assert_trees_equal(restored.state["params"], make_state(2).params)
    checkpoints.close()


def files_of(step_folder):
    return sorted(path for path in step_folder.rglob("*") if path.is_file())


def damage_largest(step_folder, how):
    path = max(files_of(step_folder / "state"), key=lambda p: p.stat().st_size)
    content = path.read_bytes()
    middle = len(content) // 2
    if how == "flipped":
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif how == "truncated":
        path.write_bytes(content[:middle])
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["flipped", "truncated", "deleted"])
def test_a_damaged_newest_is_skipped_and_said_so(copy, caplog, how):
    damage_largest(copy / "2", how)
    with caplog.at_level(logging.ERROR):
        checkpoints = Checkpoints(copy)
        restored = checkpoints.restore(abstract(make_state(0)))
    assert restored.step == 1 and restored.ledger == {"next_task": 10}
    assert_trees_equal(restored.state, make_state(1))
    assert "checkpoint 2 is damaged and skipped" in caplog.text
    checkpoints.save(2, make_state(7), {"again": True})  # the run makes step 2 once more
    checkpoints.wait()
    assert_trees_equal(checkpoints.restore(abstract(make_state(0))).state, make_state(7))
    checkpoints.close()
    assert sorted(path.name for path in copy.iterdir()) == ["1", "2", "damaged-2-0"]


def test_a_step_can_be_asked_for(copy):
    checkpoints = Checkpoints(copy, read_only=True)
    assert checkpoints.restore(abstract(make_state(0)), step=1).step == 1
    damage_largest(copy / "1", "flipped")
    with pytest.raises(CheckpointError, match=r"\[1\] damaged"):
        checkpoints.restore(abstract(make_state(0)), step=1)
    checkpoints.close()


def test_looking_on_changes_nothing(copy):
    damage_largest(copy / "2", "flipped")
    assert restore(copy, read_only=True).step == 1
    assert sorted(path.name for path in copy.iterdir()) == ["1", "2"]


def test_every_file_of_a_checkpoint_is_guarded(copy):
    files = files_of(copy / "2")
    assert len(files) > 5
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        assert restore(copy, {"step": jax.ShapeDtypeStruct((), jnp.int32)}, read_only=True, partial=True).step == 1
        path.write_bytes(content)


def test_notes_that_orbax_left_do_not_matter_and_go(copy):
    for name in NOTES:
        (copy / "2" / name).write_bytes(b"\xff{")
    restored = restore(copy, read_only=True)
    assert restored.step == 2
    assert_trees_equal(restored.state, make_state(2))
    restore(copy)
    assert not any((copy / "2" / name).exists() for name in NOTES)


def test_all_damaged_is_an_error_and_nothing_is_moved(copy):
    for step in ("1", "2"):
        damage_largest(copy / step, "truncated")
    with pytest.raises(CheckpointError, match=r"\[2, 1\] damaged"):
        restore(copy)
    assert sorted(path.name for path in copy.iterdir()) == ["1", "2"]


def test_another_architecture_is_an_error_not_damage(copy):
    for changes in ({"hidden_size": 40}, {"use_qk_norm": True}, {"tie_word_embeddings": True}):
        other = abstract(make_state(0, dataclasses.replace(SMALL, **changes)))
        with pytest.raises(CheckpointError, match=r"checkpoint 2 .*another architecture"):
            restore(copy, other)
    assert sorted(path.name for path in copy.iterdir()) == ["1", "2"]


KILLED = """
import os, signal, sys, threading
import jax.numpy as jnp
from intellect_jax.bridge import checkpoint
checkpoints = checkpoint.Checkpoints(sys.argv[1])
checkpoints.save(1, {"x": jnp.ones(1000)}, {})
checkpoints.wait()
checkpoint.hash_files = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # dies when the arrays are on disk, unnamed
checkpoints.save(2, {"x": jnp.zeros(1000)}, {})
checkpoints.wait()
"""


def test_a_save_cut_off_by_kill_leaves_the_one_before(tmp_path):
    process = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], timeout=120, env={**os.environ})
    assert process.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    checkpoints = Checkpoints(tmp_path)
    restored = checkpoints.restore({"x": jax.ShapeDtypeStruct((1000,), jnp.float32)})
    assert restored.step == 1 and float(restored.state["x"].sum()) == 1000
    checkpoints.close()
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
