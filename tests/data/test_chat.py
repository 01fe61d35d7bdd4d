import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intellect_jax.bridge.tokenizer import CHARACTERS, load_tokenizer, write_character_tokenizer
from intellect_jax.data.chat import extend, render_prompt, render_training

# Qwen's shape: something behind the end token. And GLM's: no end token, old turns lose their reasoning.
CHATML = """{%- for m in messages %}{{ '<|user|>' + m.role + '\n' + m.content + '<|end|>' + '\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{ '<|user|>assistant\n' }}{%- endif %}"""
NO_END = """{%- for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{%- endif %}"""
REWRITES = """{%- for m in messages %}{{ '<|' + m.role + '|>' }}
{%- if m.role == 'assistant' and not loop.last %}{{ m.content.split('/')[-1] }}{% else %}{{ m.content }}{% endif %}
{%- endfor %}{%- if add_generation_prompt %}{{ '<|assistant|>' }}{%- endif %}"""

CONVERSATION = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "abc"},
    {"role": "assistant", "content": "cba"},
    {"role": "user", "content": "de"},
    {"role": "assistant", "content": "ed"},
]
content = st.text(alphabet=CHARACTERS.replace("<", ""), max_size=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    write_character_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder)


def with_template(folder, template):
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = template
    return tokenizer


def written(tokenizer, messages):
    """The masked stretches as texts."""
    ids, mask = render_training(tokenizer, messages)
    marked = "".join(tokenizer.decode([i]) if m else "\0" for i, m in zip(ids, mask, strict=True))
    return re.findall("[^\0]+", marked)


def test_prompt(tokenizer):
    ids = render_prompt(tokenizer, CONVERSATION[:2])
    assert tokenizer.decode(ids) == "<|system|>be kind<|user|>abc<|assistant|>"
    assert len(ids) == 3 + 7 + 3


def test_mask_is_what_the_assistant_wrote(tokenizer):
    ids, mask = render_training(tokenizer, CONVERSATION)
    assert ids.dtype == "int32" and mask.dtype == "bool"
    assert ids.tolist() == tokenizer.apply_chat_template(CONVERSATION, return_dict=False)
    assert written(tokenizer, CONVERSATION) == ["cba<|end|>", "ed<|end|>"]


@settings(max_examples=100, deadline=None)
@given(turns=st.lists(st.tuples(content, content), min_size=1, max_size=3))
def test_prompt_and_completion_are_the_conversation(tokenizer, turns):
    """What SFT trains on is what the sampler is prompted with, then what it should write."""
    messages = []
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        prompt = render_prompt(tokenizer, messages)
        messages.append({"role": "assistant", "content": answer})
        ids, mask = render_training(tokenizer, messages)
        assert ids[: len(prompt)].tolist() == prompt
        assert mask[len(prompt) :].all()
        assert tokenizer.decode(ids[len(prompt) :]) == answer + "<|end|>"
    assert mask.sum() == sum(len(answer) + 1 for _, answer in turns)


def test_what_a_template_adds_behind_the_end_token_is_not_trained(folder):
    tokenizer = with_template(folder, CHATML)
    assert written(tokenizer, CONVERSATION) == ["cba<|end|>", "ed<|end|>"]


def test_a_template_without_end_token(folder):
    assert written(with_template(folder, NO_END), CONVERSATION) == ["cba", "ed"]


def test_rewritten_history_is_refused_and_names_the_turn(folder):
    tokenizer = with_template(folder, REWRITES)
    messages = [*CONVERSATION]
    messages[2] = {"role": "assistant", "content": "think/cba"}
    with pytest.raises(ValueError, match="the conversation up to message 2 is not a prefix"):
        render_training(tokenizer, messages)


def test_nothing_to_train_on_is_refused(tokenizer):
    with pytest.raises(ValueError, match="no message of the assistant"):
        render_training(tokenizer, CONVERSATION[:2])


@pytest.mark.parametrize("template", [None, CHATML, NO_END])
def test_extend_appends_to_sampled_ids(folder, tokenizer, template):
    tokenizer = with_template(folder, template) if template else tokenizer
    prompt = render_prompt(tokenizer, CONVERSATION[:2])
    end = [] if template == NO_END else [tokenizer.eos_token_id]
    history = prompt + tokenizer.encode("cba") + end
    added = extend(tokenizer, history, CONVERSATION[:4])
    assert added and history + added == render_prompt(tokenizer, CONVERSATION[:4])


def test_extend_closes_an_answer_that_was_cut_off(tokenizer):
    history = render_prompt(tokenizer, CONVERSATION[:2]) + tokenizer.encode("cba")
    added = extend(tokenizer, history, CONVERSATION[:4])
    assert tokenizer.decode(added) == "<|end|><|user|>de<|assistant|>"


def test_extend_gives_up_on_rewritten_history(folder):
    tokenizer = with_template(folder, REWRITES)
    messages = [*CONVERSATION[:4]]
    messages[2] = {"role": "assistant", "content": "think/cba"}
    history = render_prompt(tokenizer, messages[:2]) + tokenizer.encode("think/cba")
    assert extend(tokenizer, history, messages) is None


def test_extend_never_retokenises_what_was_sampled(folder, tmp_path):
    """With a merge of a and b, an answer sampled as two tokens stays two tokens."""
    spec = json.loads((folder / "tokenizer.json").read_text())
    spec["model"]["vocab"]["ab"] = 102
    spec["model"]["merges"] = [["a", "b"]]
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    tokenizer = load_tokenizer(tmp_path)
    a, b, ab = (tokenizer.convert_tokens_to_ids(t) for t in ("a", "b", "ab"))
    messages = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "ab"}]
    messages.append({"role": "user", "content": "ab"})
    prompt = render_prompt(tokenizer, messages[:1])
    assert ab in prompt and a not in prompt
    added = extend(tokenizer, [*prompt, a, b, tokenizer.eos_token_id], messages)
    assert tokenizer.decode(added) == "<|user|>ab<|assistant|>" and ab in added
