"""A folder that transformers wrote comes out of an import and an export as it was, and transformers loads it again."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from intellect_jax.bridge import Policy, load_pretrained, save_pretrained
from tests.policies import CONFIGS, random_params

pytestmark = pytest.mark.oracle

HERE = Path(__file__).parent
NAMES = ("grouped_scaled", "tied_without_bias", "qwen3_moe_mlp_only", "qwen3_tied_bias", "llama_tied_llama3")


@pytest.fixture(scope="module")
def written(tmp_path_factory, oracle_python):
    """<config>/split and <config>/fused of transformers' making; each as <kind>-out/model after import and export."""
    root = tmp_path_factory.mktemp("written")
    for name in NAMES:
        save_pretrained(Policy(random_params(CONFIGS[name]), CONFIGS[name]), root / name / "model", dtype="float32")
    subprocess.run(
        [oracle_python, HERE / "resave_worker.py", *(root / name for name in NAMES)], check=True, timeout=280
    )
    inputs = {"tokens": np.random.default_rng(0).integers(0, 96, (4, 12)), "new_tokens": np.array(0)}
    folders = []
    for kind, name in ((kind, name) for name in NAMES for kind in ("split", "fused")):
        save_pretrained(load_pretrained(root / name / kind), root / name / f"{kind}-out" / "model")
        folders += [root / name / f"{kind}-in", root / name / f"{kind}-out"]
        folders[-2].mkdir()
        (folders[-2] / "model").symlink_to(root / name / kind)
        for folder in folders[-2:]:
            np.savez(folder / "in.npz", **inputs)
    subprocess.run([oracle_python, HERE / "transformers_worker.py", *folders], check=True, timeout=280)
    return root


def tensors_of(folder):
    """Dtype, shape and bytes by name."""
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118, safe_open has no __iter__
                tensor = file.get_tensor(name)
                found[name] = (str(tensor.dtype), tensor.shape, tensor.tobytes())
    return found


@pytest.mark.parametrize("kind", ["split", "fused"])
@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_transformers_comes_back_as_it_was(name, kind, written):
    theirs, mine = written / name / kind, written / name / f"{kind}-out" / "model"
    assert len(list(theirs.glob("*.safetensors"))) > 1, "an index was read"
    before, after = tensors_of(theirs), tensors_of(mine)
    assert before.keys() == after.keys()
    assert [tensor for tensor in before if before[tensor] != after[tensor]] == []
    assert json.loads((mine / "config.json").read_text()) == json.loads((theirs / "config.json").read_text())
    logits = [np.load(written / name / f"{kind}-{side}" / "out.npz")["logits"] for side in ("in", "out")]
    np.testing.assert_array_equal(*logits)


def test_experts_were_fused_in_one_of_the_two(written):
    fused = tensors_of(written / "grouped_scaled" / "fused")
    assert any(name.endswith("experts.gate_up_proj") for name in fused)
    assert not any("experts.0." in name for name in fused)
