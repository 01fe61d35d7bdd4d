import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intellect_jax.bridge.tokenizer import CHARACTERS, load_tokenizer, write_character_tokenizer
from intellect_jax.data.chat import advance, render_prompt, render_training, split_answer
from intellect_jax.data.template import endings
from tests.data.tokenizers import family_tokenizer

# Qwen's shape: something behind the end token. And GLM's: turns stay open, old ones lose their reasoning.
CHATML = """{%- for m in messages %}{{ '<|user|>' + m.role + '\n' + m.content + '<|end|>' + '\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{ '<|user|>assistant\n' }}{%- endif %}"""
OPEN = """{%- for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{%- endif %}"""
PLAIN = "{%- for m in messages %}{{ (m.role + ': ' if m.role != 'assistant' else '') + m.content }}{%- endfor %}"
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
    """The masked stretches of the only branch, as texts."""
    ((ids, mask),) = render_training(tokenizer, messages)
    marked = "".join(tokenizer.decode([i]) if m else "\0" for i, m in zip(ids, mask, strict=True))
    return re.findall("[^\0]+", marked)


def sampled(tokenizer, messages, ids):
    """The branch after the sampler answered the prompt of ``messages`` with ``ids``."""
    prompt, forked = advance(tokenizer, None, messages)
    assert forked
    return prompt.plus(ids, "".join(split_answer(tokenizer, ids)))


def test_prompt(tokenizer):
    ids = render_prompt(tokenizer, CONVERSATION[:2])
    assert tokenizer.decode(ids) == "<|system|>be kind<|user|>abc<|assistant|>"
    assert len(ids) == 3 + 7 + 3


def test_mask_is_what_the_assistant_wrote(tokenizer):
    ((ids, mask),) = render_training(tokenizer, CONVERSATION)
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
        ((ids, mask),) = render_training(tokenizer, messages)
        assert ids[: len(prompt)].tolist() == prompt
        assert mask[len(prompt) :].all()
        assert tokenizer.decode(ids[len(prompt) :]) == answer + "<|end|>"
    assert mask.sum() == sum(len(answer) + 1 for _, answer in turns)


def test_what_a_template_adds_behind_the_end_token_is_not_trained(folder):
    tokenizer = with_template(folder, CHATML)
    assert written(tokenizer, CONVERSATION) == ["cba<|end|>", "ed<|end|>"]


def test_a_template_that_closes_no_turn_gets_the_token_of_the_next(folder):
    """As a sampled answer has it, since the sampler stops there."""
    tokenizer = with_template(folder, OPEN)
    user, end = tokenizer.convert_tokens_to_ids(["<|user|>", "<|end|>"])
    assert endings(tokenizer).ids == {user, end}
    assert written(tokenizer, CONVERSATION) == ["cba<|user|>", "ed<|user|>"]


def test_a_template_without_special_tokens(folder):
    tokenizer = with_template(folder, PLAIN)
    assert endings(tokenizer).ids == {tokenizer.eos_token_id}
    assert written(tokenizer, CONVERSATION) == ["cba", "ed"]


def test_rewritten_history_makes_a_branch_a_turn(folder):
    """Each is what the sampler would see, and every answer is trained on once."""
    tokenizer = with_template(folder, REWRITES)
    messages = [*CONVERSATION]
    messages[2] = {"role": "assistant", "content": "think/cba"}
    branches = render_training(tokenizer, messages)
    assert [tokenizer.decode(ids) for ids, _ in branches] == [
        "<|system|>be kind<|user|>abc<|assistant|>think/cba<|user|>",
        "<|system|>be kind<|user|>abc<|assistant|>cba<|user|>de<|assistant|>ed<|user|>",
    ]
    assert [tokenizer.decode(ids[mask]) for ids, mask in branches] == ["think/cba<|user|>", "ed<|user|>"]


def test_an_answer_that_does_not_follow_its_own_prompt_is_refused(folder):
    """The prompt opens with reasoning, which the template never writes."""
    tokenizer = with_template(folder, REWRITES.replace("{{ '<|assistant|>' }}", "{{ '<|assistant|>think' }}"))
    with pytest.raises(ValueError, match="writes message 2 otherwise than it prompts for it"):
        render_training(tokenizer, CONVERSATION)


def test_nothing_to_train_on_is_refused(tokenizer):
    with pytest.raises(ValueError, match="no message of the assistant"):
        render_training(tokenizer, CONVERSATION[:2])


def test_what_a_template_refuses_is_one_kind_of_error(tokenizer):
    with pytest.raises(ValueError, match="the chat template refuses this conversation: unknown role: wizard"):
        render_prompt(tokenizer, [{"role": "wizard", "content": "x"}])


@pytest.mark.parametrize("template", [None, CHATML, OPEN])
def test_a_branch_appends_to_sampled_ids(folder, tokenizer, template):
    tokenizer = with_template(folder, template) if template else tokenizer
    end = tokenizer.encode("<|user|>" if template == OPEN else "<|end|>")
    history = sampled(tokenizer, CONVERSATION[:2], tokenizer.encode("cba") + end)
    longer, forked = advance(tokenizer, history, CONVERSATION[:4])
    assert not forked and longer.ids[: len(history.ids)] == history.ids
    assert longer.ids == render_prompt(tokenizer, CONVERSATION[:4])


def test_an_answer_that_was_cut_off_is_closed_by_the_template(tokenizer):
    history = sampled(tokenizer, CONVERSATION[:2], tokenizer.encode("cba"))
    longer, forked = advance(tokenizer, history, CONVERSATION[:4])
    assert not forked
    assert tokenizer.decode(longer.ids[len(history.ids) :]) == "<|end|><|user|>de<|assistant|>"


@pytest.mark.parametrize(
    ("template", "answer"),
    [
        (REWRITES, "think/cba<|user|>"),  # history is rewritten
        (CHATML, "cba<|pad|>"),  # something else stands at the end
        (CHATML.replace("m.content", "m.content | trim"), "cba <|end|>"),
        (OPEN, "cba<|end|>"),  # ended, but not as this template goes on
        ("{{ strftime_now('%f') }}" + CHATML, "cba<|end|>"),  # a clock within the history
    ],
)
def test_rewritten_history_forks(folder, template, answer):
    tokenizer = with_template(folder, template)
    history = sampled(tokenizer, CONVERSATION[:2], tokenizer.encode(answer))
    messages = [*CONVERSATION[:4]]
    messages[2] = {"role": "assistant", "content": split_answer(tokenizer, tokenizer.encode(answer))[0]}
    if answer.endswith("<|pad|>"):
        messages[2] = {"role": "assistant", "content": "cba"}
    fresh, forked = advance(tokenizer, history, messages)
    assert forked and fresh.ids[: len(history.ids)] != history.ids
    assert tokenizer.decode(fresh.ids) == fresh.text


def test_sampled_ids_are_never_tokenized_again(folder, tmp_path):
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
    history = sampled(tokenizer, messages[:1], [a, b, tokenizer.eos_token_id])
    assert ab in history.ids
    longer, forked = advance(tokenizer, history, messages)
    assert not forked and longer.ids[: len(history.ids)] == history.ids
    assert longer.ids[len(history.ids) :] == render_prompt(tokenizer, messages[2:])


def test_bytes_that_are_no_character_stay_as_they_were_sampled(tmp_path):
    """The environment reads a replacement character; the branch goes on with the byte."""
    tokenizer = family_tokenizer(tmp_path, "chatml")
    half = tokenizer.encode("é")[:1] if len(tokenizer.encode("é")) > 1 else tokenizer.encode("ö")[:1]
    messages = [{"role": "user", "content": "a"}]
    history = sampled(tokenizer, messages, [*tokenizer.encode("x"), *half, tokenizer.eos_token_id])
    text, end = split_answer(tokenizer, history.ids[-3:])
    assert (text, end) == ("x\ufffd", "<|im_end|>")
    messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "b"}]
    longer, forked = advance(tokenizer, history, messages)
    assert not forked and longer.ids[: len(history.ids)] == history.ids


def test_text_that_the_tokenizer_normalizes_is_no_reason_to_fork(tmp_path):
    """Qwen3's tokenizer composes what was typed in two pieces: decoding would not give the text back."""
    tokenizer = family_tokenizer(
        tmp_path, "qwen3", template=CHATML.replace("<|user|>", "<|im_start|>").replace("<|end|>", "<|im_end|>")
    )
    messages = [{"role": "user", "content": "e\u0301"}]
    assert "e\u0301" not in tokenizer.decode(render_prompt(tokenizer, messages))
    history = sampled(tokenizer, messages, tokenizer.encode("ok<|im_end|>"))
    messages += [{"role": "assistant", "content": "ok"}, {"role": "user", "content": "b"}]
    assert advance(tokenizer, history, messages)[1] is False
    ((ids, mask),) = render_training(tokenizer, [*messages, {"role": "assistant", "content": "o\u0308"}])
    assert tokenizer.decode(ids[mask]) == "ok<|im_end|>ö<|im_end|>"
