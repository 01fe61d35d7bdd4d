"""Every family is the same model in transformers: logits, greedy continuations, padding, packing and gradients."""

import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

from intellect_jax.bridge import Policy, load_pretrained, save_pretrained
from intellect_jax.bridge.huggingface import to_hf
from tests.policies import CONFIGS, logits_function, loss_and_gradients, random_params, relative_error

pytestmark = [pytest.mark.oracle, pytest.mark.timeout(900)]

WORKER = Path(__file__).with_name("transformers_worker.py")
SEQUENCES, LENGTH, NEW_TOKENS = 64, 16, 8
ROW = 2 * LENGTH  # every row has room for two sequences, so that one program serves all comparisons
TOLERANCE = 1e-4  # of logits, absolute; of gradients, relative L2 for each tensor


def inputs() -> dict[str, np.ndarray]:
    """Tokens, targets, and a mask that pads even rows on the left and odd rows on the right."""
    # With this seed no token's choice of experts is a tie that rounding decides.
    rng = np.random.default_rng(2)
    tokens, targets = rng.integers(0, 96, (2, SEQUENCES, LENGTH))
    padding = rng.integers(1, LENGTH // 2, SEQUENCES)
    real = np.arange(LENGTH) < LENGTH - padding[:, None]
    mask = np.where((np.arange(SEQUENCES) % 2 == 0)[:, None], real[:, ::-1], real)
    return {"tokens": tokens, "targets": targets, "mask": mask.astype(np.int64), "new_tokens": np.array(NEW_TOKENS)}


@pytest.fixture(scope="module")
def exported(tmp_path_factory, oracle_python):
    """A folder with, for each config, model/ and what transformers makes of it in out.npz."""
    root = tmp_path_factory.mktemp("exported")
    for name, cfg in CONFIGS.items():
        policy = Policy(random_params(cfg), cfg)
        save_pretrained(policy, root / name / "model", dtype="float32", max_shard_bytes=100_000)
        np.savez(root / name / "in.npz", **inputs())
    subprocess.run([oracle_python, WORKER, *(root / name for name in CONFIGS)], check=True, timeout=800)
    return root


def wide(array):
    """[B, LENGTH] → int32 [B, ROW], zeros after it."""
    return np.pad(array, ((0, 0), (0, ROW - LENGTH))).astype(np.int32)


def continue_greedily(compute, params, tokens):
    """NEW_TOKENS after ``tokens`` [B, LENGTH], each from a pass over whole rows."""
    rows = wide(tokens)
    for at in range(LENGTH, LENGTH + NEW_TOKENS):
        rows[:, at] = np.asarray(compute(params, rows, *unpacked(rows)))[:, at - 1].argmax(-1)
    return rows[:, LENGTH : LENGTH + NEW_TOKENS]


def unpacked(rows):
    """Positions and segment ids of rows that are one sequence each."""
    return np.broadcast_to(np.arange(ROW, dtype=np.int32), rows.shape), np.ones_like(rows)


def packed_with_the_next(tokens, mask):
    """Row i and then row i + 1 without their padding: tokens, positions, segment ids, each [B, ROW]."""
    rows = np.zeros((3, len(tokens), ROW), np.int32)
    for i in range(len(tokens)):
        parts = []
        for segment, row in enumerate((i, (i + 1) % len(tokens)), start=1):
            kept = tokens[row, mask[row] > 0]
            parts.append([kept, np.arange(len(kept)), np.full(len(kept), segment)])
        packed = np.concatenate(parts, axis=1)
        rows[:, i, : packed.shape[1]] = packed
    return rows


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers(name, exported):
    policy = load_pretrained(exported / name / "model")
    params, cfg = policy.params, policy.config
    assert cfg == CONFIGS[name]
    tokens, mask = inputs()["tokens"], inputs()["mask"]
    theirs = np.load(exported / name / "out.npz")
    compute = logits_function(cfg)
    rows, real = wide(tokens), mask > 0
    mine = np.asarray(compute(params, rows, *unpacked(rows)))[:, :LENGTH]
    assert np.ptp(mine, axis=-1).mean() > 1  # or equality would mean nothing
    plain = np.abs(mine - theirs["logits"]).max()
    np.testing.assert_array_equal(continue_greedily(compute, params, tokens), theirs["greedy"])

    positions = np.maximum(mask.cumsum(-1) - 1, 0)
    mine = np.asarray(compute(params, rows, wide(positions), wide(mask)))[:, :LENGTH][real]
    padded = np.abs(mine - theirs["masked"][real]).max()

    packed_tokens, positions, segments = packed_with_the_next(tokens, mask)
    mine = np.asarray(compute(params, packed_tokens, positions, segments))
    first, second = mine[segments == 1], np.roll(theirs["masked"], -1, axis=0)[np.roll(real, -1, axis=0)]
    packed = max(np.abs(first - theirs["masked"][real]).max(), np.abs(mine[segments == 2] - second).max())
    print(f"{name}: plain {plain:.1e}, padded {padded:.1e}, packed {packed:.1e}")
    assert max(plain, padded, packed) <= TOLERANCE


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_equal_autograd(name, exported):
    cfg, data, theirs = CONFIGS[name], inputs(), np.load(exported / name / "out.npz")
    params = jax.device_put(random_params(cfg))
    loss, gradients = loss_and_gradients(cfg)(params, data["tokens"], data["targets"])
    np.testing.assert_allclose(loss, theirs["loss"], rtol=1e-5)
    mine = {f"grad/{tensor}": value for tensor, value in to_hf(gradients, cfg) if "score_correction" not in tensor}
    assert mine.keys() == {key for key in theirs if key.startswith("grad/")}
    errors = {tensor: relative_error(value, theirs[tensor]) for tensor, value in mine.items()}
    worst = max(errors, key=errors.__getitem__)
    print(f"{name}: {errors[worst]:.1e} {worst}")
    assert errors[worst] <= TOLERANCE, worst
