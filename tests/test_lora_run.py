"""A LoRA run as a person starts it: supervised steps, RL with merged weights on the sampler, an adapter at the end."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from intellect_jax.bridge import Policy, load_adapter, load_pretrained, save_pretrained
from intellect_jax.bridge.save import policy_tensors
from intellect_jax.bridge.tokenizer import write_character_tokenizer
from intellect_jax.models.config import ModelConfig
from intellect_jax.models.transformer import init_params
from intellect_jax.transport.weights import WeightStore
from intellect_jax.types import Version
from launch.configuration import load

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


def launch(*words):
    done = subprocess.run(
        [sys.executable, "-m", "launch", *words], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder with base/ and tiny/, the run)."""
    root = tmp_path_factory.mktemp("lora")
    write_character_tokenizer(root / "tokenizer")
    cfg = ModelConfig.from_config(load(ROOT / "configs" / "debug_cpu.py").model, 102)
    save_pretrained(Policy(init_params(cfg, 0), cfg), root / "base", dtype="float32", tokenizer=root / "tokenizer")
    launch(
        *("--config=configs/debug_cpu.py", f"--config.run.root={root}", "--config.run.name=tiny"),
        *("--config.sft.steps=12", "--config.sft.decay_steps=0", "--config.trainer.max_steps=3"),
        *("--config.orchestrator.batch_size=16", "--config.orchestrator.group_size=4", "--config.eval.prompts=12"),
        *("--config.lora.rank=4", "--config.lora.targets=attention,dense,experts", "--config.export.lora=adapter"),
        f"--config.model.path={root / 'base'}",
    )
    return root


def test_the_sampler_computes_what_the_trainer_does(finished):
    summary = json.loads((finished / "tiny" / "summary.json").read_text())
    assert (summary["steps"], summary["sft_steps"], summary["process_deaths"]) == (3, 12, 0)
    assert summary["mismatch_max_fresh"] <= 1e-4 and summary["recompilations_after_warmup"] == 0


def test_the_exported_adapter_on_the_base_is_the_last_published_version(finished):
    export = finished / "tiny" / "export"
    assert {path.name for path in export.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert (export / "tokenizer.json").is_file() and not (export / "config.json").exists()
    policy = load_adapter(load_pretrained(finished / "base"), export)
    store = WeightStore(finished / "tiny" / "weights")
    published, base = store.read(store.manifest_path(Version(0, 3))), load_pretrained(finished / "base")
    for name, tensor in policy_tensors(policy, "float32"):
        np.testing.assert_allclose(tensor, published[name], atol=1e-6, err_msg=name)
    frozen = {name: tensor for name, tensor in policy_tensors(base, "float32") if "proj" not in name}
    for name, tensor in frozen.items():
        np.testing.assert_array_equal(tensor, published[name], err_msg=name)
    assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(policy.adapter.factors))


def test_launch_export_merges_the_same(finished):
    config = finished / "tiny" / "config.json"
    launch("export", f"--config={config}", "--config.export.lora=merged", f"--out={finished / 'merged'}")
    merged = load_pretrained(finished / "merged")
    policy = load_adapter(load_pretrained(finished / "base"), finished / "tiny" / "export")
    tokens = np.random.default_rng(0).integers(0, 102, (2, 16))
    np.testing.assert_allclose(merged.logits(tokens), policy.logits(tokens), atol=1e-5)
