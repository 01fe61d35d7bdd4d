import json
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest

from intellect_jax.data.records import Conversation, open_source, render_record, to_conversation
from tests.data.tokenizers import family_tokenizer

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
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
    longer = [*MESSAGES, {"role": "assistant", "content": "c"}]
    for record, expected in (
        ({"messages": MESSAGES}, Conversation(MESSAGES, [], 0)),
        ({"prompt": "é", "completion": "b"}, Conversation(MESSAGES, [], 1)),
        ({"prompt": MESSAGES, "completion": "c"}, Conversation(longer, [], 2)),
        ({"prompt": "é", "completion": MESSAGES[1:], "messages": None}, Conversation(MESSAGES, [], 1)),
        ({"messages": MESSAGES, "tools": [TOOL]}, Conversation(MESSAGES, [TOOL], 0)),
        ({"messages": MESSAGES, "tools": json.dumps([TOOL])}, Conversation(MESSAGES, [TOOL], 0)),
    ):
        assert to_conversation("f:1", record) == expected


def test_tool_calls_and_reasoning():
    """As data sets have them: null where nothing is, arguments as JSON text."""
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": "é"}'}}
    answer = {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call]}
    response = {"role": "tool", "content": "sky", "tool_calls": None, "tool_call_id": "1"}
    messages = to_conversation("f:1", {"messages": [MESSAGES[0], answer, response]}).messages
    parsed = {**call, "function": {"name": "look", "arguments": {"at": "é"}}}
    assert messages[1] == {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [parsed]}
    assert messages[2] == {"role": "tool", "content": "sky", "tool_call_id": "1"}
    assert call["function"]["arguments"] == '{"at": "é"}'  # the record is left as it was


def calling(call):
    return {"messages": [{"role": "assistant", "content": "", "tool_calls": call}]}


@pytest.mark.parametrize(
    ("record", "error"),
    [
        ({"prompt": "a"}, "f:9: no 'completion'; .* this one has prompt"),
        ({}, "f:9: no 'prompt'; .* this one has nothing"),
        ({"messages": []}, "f:9: no 'messages'"),
        ({"prompt": 3, "completion": "b"}, "f:9: no 'prompt'"),
        ([1], "f:9: a record must be an object, not list"),
        ({"messages": [{"role": "user"}]}, r"f:9: messages\[0\] must be an object with role and content"),
        ({"messages": [{"role": "user", "content": 3}]}, r"f:9: messages\[0\]: content must be text, not int"),
        (
            {"prompt": "a", "completion": [{**MESSAGES[1], "reasoning_content": []}]},
            "completion.*reasoning_content must",
        ),
        (
            {"messages": [{**MESSAGES[0], "tool_calls": [1]}]},
            "tool_calls are the assistant's, not those of role 'user'",
        ),
        (calling("look"), r"f:9: messages\[0\].tool_calls must be a list"),
        (
            calling([{"name": "look"}]),
            r'f:9: messages\[0\].tool_calls\[0\] must be {"type": "function", "function": {"name"',
        ),
        (calling([{"function": {"name": "f", "arguments": "{"}}]), r"tool_calls\[0\].function.arguments is not JSON: "),
        (calling([{"function": {"name": "f", "arguments": "[]"}}]), "arguments must be an object or its JSON text"),
        ({"messages": MESSAGES, "tools": {"type": "function"}}, "f:9: tools must be a list of tools, not dict"),
        ({"messages": MESSAGES, "tools": [TOOL, {"name": "f"}]}, r"f:9: tools\[1\] must be"),
        ({"messages": MESSAGES, "tools": "[look]"}, "f:9: tools is not JSON: "),
    ],
)
def test_bad_records_say_what_is_missing(record, error):
    with pytest.raises(ValueError, match=error):
        to_conversation("f:9", record)


def test_what_a_template_cannot_write_names_file_and_line(tmp_path):
    plain = family_tokenizer(tmp_path, "chatml")
    call = {"prompt": "a", "completion": calling([{"function": {"name": "look"}}])["messages"]}
    thinking = {"prompt": "a", "completion": [{"role": "assistant", "content": "b", "reasoning_content": "hm"}]}
    for record, error in (
        ({"messages": MESSAGES, "tools": [TOOL]}, "f:9: the chat template leaves out the tool 'look'"),
        (call, "f:9: the chat template leaves out the tool 'look'"),
        (thinking, "f:9: the chat template leaves out the reasoning_content of message 1"),
        ({"messages": MESSAGES[:1]}, "f:9: no message of the assistant to train on"),
    ):
        with pytest.raises(ValueError, match=error):
            render_record(plain, "f:9", record)
