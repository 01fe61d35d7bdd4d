"""Random conversations under the templates of real families: exact prefixes or forks, and masks on what was written.

What must come out is found without the code under test: forks from the texts of ``apply_chat_template``, masks from
characters that only one turn of the assistant has (private use, two a turn) and the family's constants around them.
"""

import unicodedata
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from intellect_jax.data.chat import advance, flatten, render_prompt, render_training, split_answer
from intellect_jax.data.template import endings
from tests.data.tokenizers import FAMILIES, family_tokenizer


class Family(NamedTuple):
    header: str  # what the template writes before an answer, also as generation prompt
    user: str  # the end token before a message of the user
    tool: str
    closes: bool = True
    tools: bool = True
    reasoning: bool = True


RULES = {
    "chatml": Family("<|im_start|>assistant\n", "<|im_end|>", "<|im_end|>", tools=False, reasoning=False),
    "qwen3": Family("<|im_start|>assistant\n", "<|im_end|>", "<|im_end|>"),
    "glm4_5": Family("<|assistant|>", "<|user|>", "<|observation|>", closes=False),
    "llama3": Family("<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>", "<|eot_id|>", reasoning=False),
}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}
SPACE = st.sampled_from(["", "", " ", "\n", "\n\n", " \t\n"])
COMMON = dict(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@pytest.fixture(scope="module", params=list(RULES))
def family(request):
    return request.param


@pytest.fixture(scope="module")
def tokenizer(family, tmp_path_factory):
    return family_tokenizer(tmp_path_factory.mktemp(family), family)


def body(family, markup):
    """Text of all kinds, now and then with what looks like the family's special tokens."""
    special, added = FAMILIES[family]
    odd = [t for t in (*special, *added) if markup or "think" not in t]
    text = st.text(alphabet='ab \n\té你🙂"{}<|>the', max_size=8)
    return st.lists(st.one_of(text, text, st.sampled_from(odd)), max_size=3).map("".join)


@st.composite
def questions(draw, family):
    combining = draw(st.sampled_from(["", "", "e\u0301"]))  # which Qwen3's tokenizer composes
    return draw(SPACE) + combining + draw(body(family, markup=True)) + draw(SPACE)


@st.composite
def answers(draw, family, index):
    """A turn of the assistant; all that it says stands between its own two characters."""
    rules = RULES[family]

    def own():
        return chr(0xE000 + 2 * index) + draw(body(family, markup=False)) + chr(0xE001 + 2 * index)

    content = draw(SPACE) + own() + draw(SPACE)
    message = {"role": "assistant", "content": content}
    if rules.reasoning:
        kind = draw(st.sampled_from(["none", "key", "inline"]))
        if kind == "key":
            message["reasoning_content"] = draw(SPACE) + own() + draw(SPACE)
        elif kind == "inline":  # as the policy writes it
            message["content"] = "<think>\n" + own() + "\n</think>\n\n" + content
    if rules.tools and draw(st.booleans()):
        function = {"name": "get_weather", "arguments": {"city": own(), "days": draw(st.integers())}}
        message["tool_calls"] = [{"type": "function", "function": function}]
        if family == "llama3":  # which writes the call instead
            message["content"] = ""
    return message


@st.composite
def conversations(draw, family):
    """(messages, tools): questions, answers, results of tools in all orders, a system message or none."""
    messages = [{"role": "system", "content": draw(questions(family))}] if draw(st.booleans()) else []
    messages.append({"role": "user", "content": draw(questions(family))})
    for _ in range(draw(st.integers(1, 4))):
        messages.append(draw(answers(family, len(messages))))
        role = draw(st.sampled_from(["user", "tool"]))
        for _ in range(1 if role == "user" else draw(st.integers(1, 2))):
            messages.append({"role": role, "content": draw(questions(family))})
    last = max(i for i, m in enumerate(messages) if m["role"] == "assistant")
    stop = draw(st.sampled_from([last + 1, len(messages)]))
    return messages[:stop], [TOOL] if RULES[family].tools and draw(st.booleans()) else []


def template_text(tokenizer, messages, tools, generate):
    return tokenizer.apply_chat_template(messages, tools=tools or None, tokenize=False, add_generation_prompt=generate)


def end_token(rules, messages, turn):
    """What the assistant writes last in message ``turn``."""
    if turn + 1 < len(messages):
        return rules.tool if messages[turn + 1]["role"] == "tool" else rules.user
    return rules.tool if "tool_calls" in messages[turn] else rules.user


def answer_text(tokenizer, rules, messages, turn, tools):
    """What the assistant writes as message ``turn``, from texts alone."""
    prompt = template_text(tokenizer, messages[:turn], tools, True)
    whole = template_text(tokenizer, messages[: turn + 1], tools, False)
    assert whole.startswith(prompt)
    end, text = end_token(rules, messages, turn), whole[len(prompt) :]
    return text[: text.rindex(end) + len(end)] if rules.closes else text + end


def expected_branches(tokenizer, rules, messages, tools, context):
    """[(text, turns trained)] of each branch."""
    branches, history = [], None
    for turn in (i for i in range(context, len(messages)) if messages[i]["role"] == "assistant"):
        prompt = template_text(tokenizer, messages[:turn], tools, True)
        if history is None or not prompt.startswith(history):
            branches.append(["", []])
        history = prompt + answer_text(tokenizer, rules, messages, turn, tools)
        branches[-1][0] = history
        branches[-1][1].append(turn)
    return branches


def byte_alphabet():
    """Byte-level BPE's character -> byte (Radford et al. 2019): printable ones for themselves, the rest from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(rest)}


BYTES = byte_alphabet()


def token_bytes(tokenizer, index):
    if index in tokenizer.added_tokens_decoder:
        return tokenizer.added_tokens_decoder[index].content.encode()
    return bytes(BYTES[c] for c in tokenizer.convert_ids_to_tokens(int(index)))


def own_span(text, rules, end, turn):
    """From behind the header before the turn's own characters up to the end token behind them."""
    first = min(p for p in (text.find(chr(0xE000 + 2 * turn)), text.find(chr(0xE001 + 2 * turn))) if p >= 0)
    last = max(text.rfind(chr(0xE000 + 2 * turn)), text.rfind(chr(0xE001 + 2 * turn)))
    return text.rindex(rules.header, 0, first) + len(rules.header), text.index(end, last) + len(end)


@settings(max_examples=40, **COMMON)
@given(data=st.data())
def test_masks_cover_exactly_what_the_assistant_wrote(family, tokenizer, data):
    messages, tools = data.draw(conversations(family))
    first = next(i for i, m in enumerate(messages) if m["role"] == "assistant")
    context = data.draw(st.sampled_from([0, first, len(messages) - 1]))
    rules = RULES[family]
    expected = expected_branches(tokenizer, rules, messages, tools, context)
    if not expected:
        with pytest.raises(ValueError, match="no message of the assistant"):
            render_training(tokenizer, messages, tools, context)
        return
    branches = render_training(tokenizer, messages, tools, context)
    assert len(branches) == len(expected)
    for (ids, mask), (text, turns) in zip(branches, expected, strict=True):
        pieces = [token_bytes(tokenizer, i) for i in ids]
        written = b"".join(pieces).decode()
        assert unicodedata.normalize("NFC", written) == unicodedata.normalize("NFC", text)
        per_byte = np.zeros(len(b"".join(pieces)), bool)
        for turn in turns:
            start, stop = own_span(written, rules, end_token(rules, messages, turn), turn)
            per_byte[len(written[:start].encode()) : len(written[:stop].encode())] = True
        assert np.repeat(mask, [len(p) for p in pieces]).tolist() == per_byte.tolist()


@settings(max_examples=30, **COMMON)
@given(data=st.data())
def test_supervised_branches_are_those_of_rollouts(family, tokenizer, data):
    """A sampler that writes the record's answers gives the record's branches, token by token."""
    messages, tools = data.draw(conversations(family))
    branches, history = [], None
    for turn in (i for i, m in enumerate(messages) if m["role"] == "assistant"):
        prompt, forked = advance(tokenizer, history, messages[:turn], tools)
        known = 0 if forked else len(history.ids)
        answer = answer_text(tokenizer, RULES[family], messages, turn, tools)
        ids = tokenizer.encode(answer, add_special_tokens=False)
        said, end = split_answer(tokenizer, ids)
        assert said + end == answer and end == end_token(RULES[family], messages, turn)
        branches = [*branches, []] if forked else branches
        branches[-1] += [(prompt.ids[known:], False), (ids, True)]
        history = prompt.plus(ids, said + end)
    for ours, theirs in zip(map(flatten, branches), render_training(tokenizer, messages, tools), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@st.composite
def sampled_answers(draw, family, tokenizer):
    """Ids as a sampler may write them: the tokenizer's own, other splits of the same text, or any ids at all."""
    message = draw(answers(family, 0))
    text = "".join(message.get(key, "") for key in ("reasoning_content", "content"))
    if draw(st.booleans()):
        text = "\n<think>" + text + "</think>\nso" if family == "glm4_5" else "<think>\na\n</think>\n\n" + text
    any_id = st.integers(0, len(tokenizer) - 1).filter(lambda i: i not in endings(tokenizer).ids)
    cut = draw(st.integers(0, len(text)))
    ids = draw(
        st.one_of(
            st.just(tokenizer.encode(text, add_special_tokens=False)),
            st.just([t for part in (text[:cut], text[cut:]) for t in tokenizer.encode(part, add_special_tokens=False)]),
            st.lists(any_id, max_size=12),
        )
    )
    end = st.sampled_from([[index] for index in sorted(endings(tokenizer).ids)])
    return ids + draw(st.one_of(end, end, end, st.just([])))  # no end: cut off


@settings(max_examples=40, **COMMON)
@given(data=st.data())
def test_rollouts_grow_by_exact_prefix_or_fork(family, tokenizer, data):
    tools = [TOOL] if RULES[family].tools and data.draw(st.booleans()) else []
    messages, history = [{"role": "user", "content": data.draw(questions(family))}], None
    for _ in range(data.draw(st.integers(2, 4))):
        longer, forked = advance(tokenizer, history, messages, tools)
        text = template_text(tokenizer, messages, tools, True)
        assert longer.text == text
        assert forked == (history is None or not text.startswith(history.text))
        if forked:
            assert longer.ids == render_prompt(tokenizer, messages, tools)
            assert longer.ids == tokenizer.encode(text, add_special_tokens=False)
        else:
            assert longer.ids[: len(history.ids)] == history.ids
            added = tokenizer.encode(text[len(history.text) :], add_special_tokens=False)
            assert longer.ids[len(history.ids) :] == added
        ids = data.draw(sampled_answers(family, tokenizer))
        said, end = split_answer(tokenizer, ids)
        assert said + end == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        history = longer.plus(ids, said + end)
        assert history.ids == longer.ids + ids
        messages.append({"role": "assistant", "content": said})
        role = data.draw(st.sampled_from(["user", "tool"]))
        messages.append({"role": role, "content": data.draw(questions(family))})


def test_what_ends_a_turn(family, tokenizer):
    rules, ends = RULES[family], endings(tokenizer)
    assert tokenizer.convert_ids_to_tokens([ends.before["user"], ends.before["tool"]]) == [rules.user, rules.tool]
    assert ends.closes == rules.closes
    assert ends.ids == {*ends.before.values(), tokenizer.eos_token_id}
