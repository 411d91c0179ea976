"""What a user writes is text, even where it spells a special token; what a template writes is what it always was."""

from __future__ import annotations

from typing import Any

import pytest

from kvcompress.data.chat_template import Dialogue, layout_ids, user
from kvcompress.data.sessions import Session, plain_text_ids, session_token_ids
from kvcompress.errors import InputError
from kvcompress.hf.special_tokens import plain_ids, spellings
from tests.core.test_recall import characters
from tests.hf.chat_templates import KINDS, tokenizer_of, tokenizer_with

SPELLED = ["a{}b", "{}", " {}\n{} ", "x{}{}", "{}{}<"]


@pytest.mark.parametrize("name", KINDS)
def test_a_spelled_token_is_text_and_the_rest_as_ever(name: str) -> None:
    tokenizer = tokenizer_of(name)
    plain = [user("Hi there"), {"role": "assistant", "content": "Yes."}]
    ends = tokenizer.apply_chat_template(plain, return_dict=False)
    for text in SPELLED:
        for special in spellings(tokenizer):
            spelled = text.replace("{}", special)
            asked = [user(spelled), plain[1]]
            ids = layout_ids(tokenizer, Dialogue(tuple(asked)))
            marks = set(spellings(tokenizer).values())
            assert [i for i in ids if i in marks] == [i for i in ends if i in marks]
            assert tokenizer.decode(ids) == tokenizer.decode(tokenizer.apply_chat_template(asked, return_dict=False))
            meant = layout_ids(tokenizer, Dialogue(()).then(*asked, special_tokens=True))
            assert meant == tokenizer.apply_chat_template(asked, return_dict=False)


def test_tokens_around_a_spelled_one_are_those_of_the_text() -> None:
    tokenizer = tokenizer_of("chatml")
    ids = layout_ids(tokenizer, Dialogue((user("a <|im_end|> b"),)))
    inner = tokenizer("user\na <|im_end|> b", split_special_tokens=True)["input_ids"]
    assert ids[1 : 1 + len(inner)] == inner


def test_an_assistant_s_own_markers_stay_tokens_but_none_that_divides_turns() -> None:
    special = ("<|im_start|>", "<think>", "</think>")
    tokenizer = tokenizer_with(KINDS["thinking in the last answer only"].template, "<|im_end|>", special)
    answer = {"role": "assistant", "content": "<think>\nso\n</think>\n\nthe token <|im_end|> ends"}
    ids = layout_ids(tokenizer, Dialogue((user("Say <think>"), answer)))
    assert ids.count(tokenizer.convert_tokens_to_ids("<think>")) == 1
    assert ids.count(tokenizer.eos_token_id) == 2


def test_texts_are_text_unless_asked_otherwise() -> None:
    tokenizer = tokenizer_of("chatml")
    stop, text = tokenizer.eos_token_id, "one <|im_end|> two"
    opened = plain_text_ids(tokenizer, text)
    assert stop not in opened
    assert tokenizer.decode(opened[1:]) == text
    assert stop in plain_text_ids(tokenizer, text, special_tokens=True)
    for special in (False, True):
        found = session_token_ids(Session("a", [], text=text), tokenizer, special_tokens=special)
        assert found == plain_text_ids(tokenizer, text, special_tokens=special)
    assert plain_ids(tokenizer, "plain text") == tokenizer("plain text")["input_ids"]


def test_calls_and_their_arguments_are_text_too() -> None:
    tokenizer = tokenizer_of("chatml with a default system turn")
    call: dict[str, Any] = {"function": {"name": "add", "arguments": {"<|im_end|>": "<|im_start|>"}}}
    messages = (user("Hi"), {"role": "assistant", "content": "", "tool_calls": [call]})
    ids = layout_ids(tokenizer, Dialogue(messages))
    assert ids.count(tokenizer.eos_token_id) == 3
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(list(messages), tokenize=False)


def test_a_tokenizer_without_another_spelling_says_so() -> None:
    tokenizer = characters("{{ messages[0].content }}>")
    with pytest.raises(InputError, match="cannot spell otherwise"):
        layout_ids(tokenizer, Dialogue((user("a>b"),)))
