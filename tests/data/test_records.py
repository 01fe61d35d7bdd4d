import json
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest

from intellect_jax.data.records import open_source, to_messages

MESSAGES = [{"role": "user", "content": "é"}, {"role": "assistant", "content": "b"}]


def test_jsonl_by_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "é"}\n\n   \n{"prompt": "b"}\n{"prompt": "c"}', encoding="utf-8")
    source = open_source(str(path))
    assert [source[i] for i in (2, 0, 1)] == [
        (f"{path}:5", {"prompt": "c"}),
        (f"{path}:1", {"prompt": "é"}),
        (f"{path}:4", {"prompt": "b"}),
    ]
    assert len(source) == 3


def test_bad_json_names_file_and_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": \n')
    with pytest.raises(ValueError, match=r"a\.jsonl:2: not JSON"):
        open_source(str(path))[1]


def test_parquet_by_row(tmp_path):
    path = tmp_path / "a.parquet"
    records = [{"messages": MESSAGES, "prompt": None}, {"messages": None, "prompt": "x"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    source = open_source(str(path))
    assert len(source) == 2
    assert source[0] == (f"{path}:1", {"messages": MESSAGES, "prompt": None})
    assert source[1][1]["prompt"] == "x"


def test_tensorflow_datasets_without_tensorflow(tmp_path):
    """A data set that tensorflow-datasets itself wrote, in a process of its own: nothing may import TensorFlow."""
    pytest.importorskip("tensorflow_datasets")
    script = tmp_path / "script.py"
    script.write_text(f"""
import json, sys
import tensorflow_datasets as tfds

class Letters(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    def _info(self):
        text = tfds.features.Text()
        features = {{"prompt": text, "messages": tfds.features.Sequence({{"role": text, "content": text}})}}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))
    def _split_generators(self, manager):
        return {{"train": self._generate_examples()}}
    def _generate_examples(self):
        yield 0, {{"prompt": "é", "messages": {MESSAGES!r}}}
        yield 1, {{"prompt": "é", "messages": {MESSAGES[:1]!r}}}

folder = {str(tmp_path / "data")!r}
Letters(data_dir=folder, file_format="array_record").download_and_prepare()
tfds.core.add_data_dir(folder)
from intellect_jax.data.records import open_source
source = open_source("tfds:letters/train")
assert "tensorflow" not in sys.modules and "jax" not in sys.modules
print(json.dumps([source[i] for i in range(len(source))]))
""")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    assert [where for where, _ in rows] == ["tfds:letters/train:1", "tfds:letters/train:2"]
    records = sorted((record for _, record in rows), key=lambda r: len(r["messages"]))
    assert records == [{"prompt": "é", "messages": MESSAGES[:1]}, {"prompt": "é", "messages": MESSAGES}]


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ("x.csv", "'x.csv' is no source of records: must end in .jsonl or .parquet, or be tfds:<name>/<split>"),
        ("missing.jsonl", "there is no file missing.jsonl"),
        ("tfds:letters", "'tfds:letters' names no split"),
    ],
)
def test_sources_that_are_none(data, error):
    if data.startswith("tfds:"):
        pytest.importorskip("tensorflow_datasets")
    with pytest.raises(ValueError, match=error):
        open_source(data)


def test_an_empty_source_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no records"):
        open_source(str(tmp_path / "a.jsonl"))


def test_kinds_of_records():
    assert to_messages("f:1", {"messages": MESSAGES}) == (MESSAGES, 0)
    assert to_messages("f:1", {"prompt": "é", "completion": "b"}) == (MESSAGES, 1)
    assert to_messages("f:1", {"prompt": MESSAGES, "completion": "c"}) == (
        [*MESSAGES, {"role": "assistant", "content": "c"}],
        2,
    )
    assert to_messages("f:1", {"prompt": "é", "completion": MESSAGES[1:], "messages": None}) == (MESSAGES, 1)


@pytest.mark.parametrize(
    ("record", "error"),
    [
        ({"prompt": "a"}, "f:9: no 'completion'; .* this one has prompt"),
        ({}, "f:9: no 'prompt'; .* this one has nothing"),
        ({"messages": []}, "f:9: no 'messages'"),
        ({"prompt": 3, "completion": "b"}, "f:9: no 'prompt'"),
        ([1], "f:9: a record must be an object, not list"),
        ({"messages": [{"role": "user"}]}, r"f:9: messages\[0\] must be an object with role and content"),
    ],
)
def test_bad_records_say_what_is_missing(record, error):
    with pytest.raises(ValueError, match=error):
        to_messages("f:9", record)
