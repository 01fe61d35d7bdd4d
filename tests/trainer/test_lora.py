"""A LoRA run trains and saves its adapters alone; the base stays as it was, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.debug_cpu import get_config
from intellect_jax.bridge import Policy, save_pretrained
from intellect_jax.bridge.checkpoint import CheckpointError, Checkpoints
from intellect_jax.bridge.huggingface import to_hf
from intellect_jax.bridge.save import policy_tensors
from intellect_jax.bridge.shape import model_config
from intellect_jax.bridge.source import Source
from intellect_jax.bridge.tokenizer import write_character_tokenizer
from intellect_jax.errors import UserError
from intellect_jax.models.lora_shape import TARGETS, Lora
from intellect_jax.monitor.metrics import read_metrics
from intellect_jax.parallel.mesh import make_mesh
from intellect_jax.trainer import setup
from intellect_jax.trainer.sft import FOLDER, run_sft
from tests.policies import CONFIGS, SMALL, assert_trees_equal, random_params

STEPS = 5


def lora_config():
    config = get_config()
    config.model.hidden_size, config.model.num_hidden_layers = 64, 2
    config.trainer.microbatch_buckets, config.trainer.rows = (1,), 4
    config.sft.steps, config.sft.warmup_steps, config.sft.decay_steps, config.sft.learning_rate = STEPS, 0, 0, 1e-2
    config.checkpoint.every = 2
    config.lora.rank, config.lora.targets = 2, TARGETS
    return config


def with_tokenizer(run_dir):
    write_character_tokenizer(run_dir / "tokenizer")
    return run_dir


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    return setup.create(lora_config(), with_tokenizer(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def unbroken(trainer, tmp_path_factory):
    """(the base before, run directory, the state after STEPS steps)"""
    before = jax.tree.map(np.array, trainer.base)
    run_dir = with_tokenizer(tmp_path_factory.mktemp("unbroken"))
    return before, run_dir, jax.device_get(run_sft(trainer, run_dir))


@pytest.mark.slow
def test_before_the_first_step_the_policy_is_its_base(trainer):
    policy = trainer.policy(trainer.init_state())
    for (name, tensor), (_, base) in zip(
        sorted(policy_tensors(policy, "float32")), sorted(to_hf(trainer.base, trainer.cfg)), strict=True
    ):
        np.testing.assert_array_equal(tensor, base, err_msg=name)


@pytest.mark.slow
def test_only_adapters_change(trainer, unbroken):
    before, run_dir, state = unbroken
    assert_trees_equal(trainer.base, before)
    losses = [r["loss/ce"] for r in read_metrics(run_dir) if r["role"] == "sft"]
    assert losses[-1] < losses[0] - 0.1
    fresh = jax.device_get(trainer.init_state().params)
    for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(fresh), jax.tree.leaves(state.params), strict=True):
        assert not np.array_equal(old, new), jax.tree_util.keystr(path)


@pytest.mark.slow
def test_a_checkpoint_holds_adapters_and_their_moments(trainer, unbroken):
    folder = unbroken[1] / FOLDER / "4" / "state"
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    trained = sum(leaf.nbytes for leaf in jax.tree.leaves(unbroken[2].params))
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(trainer.base))
    print(f"checkpoint {size}, adapters {trained}, base {whole} bytes")
    # Three trained copies, and what Orbax writes beside the arrays: some 200 to 250 KB, not the same in every run.
    assert size < whole / 2


@pytest.mark.slow
def test_a_stopped_run_goes_on_and_ends_bit_for_bit_like_an_unbroken_one(trainer, unbroken, tmp_path):
    run_dir = with_tokenizer(tmp_path)

    def done():
        return sum(row["role"] == "sft" for row in read_metrics(run_dir))

    assert run_sft(trainer, run_dir, lambda: done() >= 3) is None
    assert_trees_equal(run_sft(trainer, run_dir), unbroken[2])
    assert done() == STEPS


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [{"lora.rank": 4}, {"lora.targets": ("attention",)}, {"model.hidden_size": 32}, {"lora.rank": 0}],
    ids=str,
)
def test_a_checkpoint_of_another_adapter_or_base_is_told(trainer, unbroken, change):
    config = lora_config()
    with config.unlocked():
        config.update_from_flattened_dict(change)
    cfg = model_config(config, unbroken[1])
    other = setup.abstract_state(cfg, trainer.mesh, trainer.optimizer, Lora.from_config(config.lora))
    checkpoints = Checkpoints(unbroken[1] / FOLDER, read_only=True)
    with pytest.raises(CheckpointError, match="is of another architecture or optimizer"):
        checkpoints.restore(other)
    checkpoints.close()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_base_is_kept_as_its_folder_stores_it(dtype, tmp_path):
    save_pretrained(Policy(jax.device_put(random_params(SMALL)), SMALL), tmp_path / "model", dtype=dtype)
    config = lora_config()
    config.model.path = str(tmp_path / "model")
    base = setup.initial_params(config, SMALL, make_mesh(config.parallel), frozen=True)
    assert base["moe_layers"]["moe"]["experts"]["gate"].dtype == jnp.dtype(dtype)
    assert base["moe_layers"]["moe"]["router"]["bias"].dtype == jnp.float32
    source = Source(tmp_path / "model")
    for name, tensor in to_hf(base, SMALL, dtype):
        np.testing.assert_array_equal(tensor, source.read(name), err_msg=name)


@pytest.mark.parametrize(
    ("name", "targets", "message"),
    [
        ("llama", TARGETS, r"lora.targets=.*: this llama has no routed experts: drop 'experts'"),
        ("qwen3_moe", ("dense",), "this qwen3_moe has neither dense layers nor shared experts: drop 'dense'"),
    ],
)
def test_a_target_that_the_policy_lacks_is_told_by_name(name, targets, message):
    config = lora_config()
    config.lora.targets = targets
    with pytest.raises(UserError, match=message):
        setup.refuse_absent(Lora.from_config(config.lora), CONFIGS[name])
