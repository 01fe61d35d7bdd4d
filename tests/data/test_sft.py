import itertools
import json
from collections import Counter

import numpy as np
import pytest

from intellect_jax.bridge.tokenizer import load_tokenizer, write_character_tokenizer
from intellect_jax.config import default_config
from intellect_jax.data.sft import sft_batches
from intellect_jax.types import STREAMS
from tests.data.tokenizers import family_tokenizer

RECORDS = 40


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_character_tokenizer(folder)
    return load_tokenizer(folder)


def config_for(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    config = default_config()
    config.sft.data = str(path)
    config.trainer.rows = 3
    config.trainer.seq_buckets = (16, 32)
    config.trainer.microbatch_buckets = (2, 4)
    config.sft.microbatches = 2
    return config


@pytest.fixture
def config(tmp_path):
    """Forty records of 7 to 21 tokens; each prompt is one of a kind."""
    texts = [f"{i:02d}" + "x" * (i % 8) for i in range(RECORDS)]
    return config_for(tmp_path / "data.jsonl", [{"prompt": t, "completion": t[::-1]} for t in texts])


def take(batches, count):
    return list(itertools.islice(batches, count))


def segments(tokenizer, batch):
    """(whole text, trained text) of each segment of a batch, in order."""
    a = batch.arrays
    for m, r in np.ndindex(batch.shape[:2]):
        ids = a["segment_ids"][m, r]
        for s in range(1, ids.max() + 1):
            at = ids == s
            assert (a["positions"][m, r][at] == np.arange(at.sum())).all()
            tokens, mask = a["tokens"][m, r][at], a["loss_mask"][m, r][at]
            yield tokenizer.decode(tokens), tokenizer.decode(tokens[mask])


def test_batches_hold_whole_records_masked_to_the_completion(config, tokenizer):
    for batch in take(sft_batches(config, tokenizer, seed=0), 5):
        assert batch.shape == (2, 3, 32)
        a = batch.arrays
        assert {n: v.dtype for n, v in a.items()} == {n: np.dtype(d) for n, d, _ in STREAMS}
        np.testing.assert_array_equal(a["ce_weight"], a["segment_ids"] > 0)
        assert (a["rl_weight"] == 0).all() and (a["staleness"] == -1).all() and (a["temperature"] == 1).all()
        assert not a["loss_mask"][a["segment_ids"] == 0].any()
        found = list(segments(tokenizer, batch))
        assert found
        for whole, trained in found:
            prompt = trained.removesuffix("<|end|>")[::-1]
            assert trained.endswith("<|end|>") and whole == f"<|user|>{prompt}<|assistant|>{trained}"


def test_rows_are_well_filled(config, tokenizer):
    batches = take(sft_batches(config, tokenizer, seed=0), 10)
    assert np.mean([(b.arrays["segment_ids"] > 0).mean() for b in batches]) > 0.75


def test_fewer_microbatches_than_the_bucket_leave_empty_ones_behind(config, tokenizer):
    config.sft.microbatches = 1
    batch = next(sft_batches(config, tokenizer, seed=0))
    assert batch.shape == (2, 3, 32)
    assert batch.arrays["loss_mask"][0].any()
    assert not batch.arrays["loss_mask"][1].any() and not batch.arrays["segment_ids"][1].any()


def test_every_record_once_an_epoch(config, tokenizer):
    seen = [w for b in take(sft_batches(config, tokenizer, seed=0), 15) for w, _ in segments(tokenizer, b)]
    counts = Counter(seen)
    epochs = len(seen) // RECORDS
    assert len(counts) == RECORDS and epochs >= 3
    assert set(counts.values()) <= {epochs, epochs + 1}  # the last batch cuts an epoch off


def test_every_epoch_has_its_own_order(tmp_path, tokenizer):
    """Seen with batches of a single record."""
    config = config_for(tmp_path / "data.jsonl", [{"prompt": f"{i:02d}", "completion": "ok"} for i in range(RECORDS)])
    config.trainer.rows, config.trainer.seq_buckets, config.trainer.microbatch_buckets = 1, (8,), (1,)
    config.sft.microbatches = 1
    batches = take(sft_batches(config, tokenizer, seed=0), 2 * RECORDS)
    order = [w for b in batches for w, _ in segments(tokenizer, b)]
    first, second = order[:RECORDS], order[RECORDS:]
    assert len(set(first)) == len(set(second)) == RECORDS
    assert first != second and first != sorted(first)


def test_seeds_and_resuming(config, tokenizer):
    first = take(sft_batches(config, tokenizer, seed=1), 6)
    again = take(sft_batches(config, tokenizer, seed=1), 6)
    resumed = take(sft_batches(config, tokenizer, seed=1, start_step=4), 2)
    other = take(sft_batches(config, tokenizer, seed=2), 6)
    assert [b.step for b in first] == [1, 2, 3, 4, 5, 6] and [b.step for b in resumed] == [5, 6]
    for a, b in [*zip(first, again, strict=True), *zip(first[4:], resumed, strict=True)]:
        for name in a.arrays:
            np.testing.assert_array_equal(a.arrays[name], b.arrays[name])
    assert any((a.arrays["tokens"] != b.arrays["tokens"]).any() for a, b in zip(first, other, strict=True))


def test_messages_of_the_prompt_are_not_trained_on(tmp_path, tokenizer):
    messages = [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    answer = {"role": "assistant", "content": "d"}
    for record, trained in (
        ({"prompt": messages, "completion": "d"}, "d<|end|>"),
        ({"messages": [*messages, answer]}, "b<|end|>d<|end|>"),
    ):
        config = config_for(tmp_path / "data.jsonl", [record])
        batch = next(sft_batches(config, tokenizer, seed=0))
        assert {t for _, t in segments(tokenizer, batch)} == {trained}


@pytest.mark.parametrize(
    ("record", "error"),
    [
        ({"prompt": "a"}, r"data\.jsonl:1: no 'completion'"),
        ({"prompt": "a" * 20, "completion": "b" * 20}, r"data\.jsonl:1: 43 tokens exceed .* trainer.seq_buckets, 32"),
        ({"messages": [{"role": "user", "content": "a"}]}, r"data\.jsonl:1: no message of the assistant"),
    ],
)
def test_bad_records_name_file_and_line(tmp_path, tokenizer, record, error):
    config = config_for(tmp_path / "data.jsonl", [record])
    with pytest.raises(ValueError, match=error):
        next(sft_batches(config, tokenizer, seed=0))


def test_a_missing_file_is_refused_at_once(config, tokenizer):
    config.sft.data = "missing.jsonl"
    with pytest.raises(ValueError, match="there is no file missing"):
        sft_batches(config, tokenizer, seed=0)


def test_a_record_whose_template_rewrites_history_is_several_samples(tmp_path):
    """Qwen3's rules: the second question drops the first answer's reasoning; the result of a tool does not."""
    qwen3 = family_tokenizer(tmp_path / "tokenizer", "qwen3")
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "reasoning_content": "r1", "tool_calls": [call]},
        {"role": "tool", "content": "b"},
        {"role": "assistant", "reasoning_content": "r2", "content": "c"},
        {"role": "user", "content": "d"},
        {"role": "assistant", "reasoning_content": "r3", "content": "e"},
    ]
    config = config_for(tmp_path / "data.jsonl", [{"messages": messages}])
    config.trainer.seq_buckets = (256,)
    first, second = itertools.islice(sft_batches(config, qwen3, seed=0), 2)
    found = Counter(t for _, t in segments(qwen3, first))
    calling = '<think>\nr1\n</think>\n\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call><|im_end|>'
    kept = calling + "<think>\nr2\n</think>\n\nc<|im_end|>"
    fresh = "<think>\nr3\n</think>\n\ne<|im_end|>"
    assert set(found) == {kept, fresh} and abs(found[kept] - found[fresh]) <= 1
    resumed = next(sft_batches(config, qwen3, seed=0, start_step=1))
    np.testing.assert_array_equal(resumed.arrays["tokens"], second.arrays["tokens"])


def test_parts_are_rows_of_the_whole(config, tokenizer):
    for whole, *parts in zip(
        take(sft_batches(config, tokenizer, seed=1), 3),
        *(take(sft_batches(config, tokenizer, seed=1, part=part, parts=3), 3) for part in range(3)),
        strict=True,
    ):
        for part, received in enumerate(parts):
            assert received.shape == (2, 1, 32)
            for name, array in whole.arrays.items():
                np.testing.assert_array_equal(received.arrays[name], array[:, part::3])
