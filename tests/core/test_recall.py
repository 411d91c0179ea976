"""A turn that follows a session: the session's last turn is closed as its template closes turns, and only once."""

from __future__ import annotations

from typing import Any

import pytest

from kvcompress.metrics.recall import turn_ids

CHATML = (
    "{% for m in messages %}{{ '<' + m['role'] + '\n' + m['content'] + '>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant\n' }}{% endif %}"
)
ONE_TOKEN = (
    "{% for m in messages %}{{ '<' + m['role'] + m['content'] + '>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant' }}{% endif %}"
)


def characters(template: str) -> Any:
    """Return a tokenizer of one token a character, whose stop token is ">"."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = "\n <>?abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    tokenizer = Tokenizer(models.WordLevel({letter: number for number, letter in enumerate(letters)}, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(""), "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=">")
    fast.chat_template = template
    return fast


@pytest.mark.parametrize("template", [CHATML, ONE_TOKEN])
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_session_goes_on_as_its_template_would_have_gone_on(template: str, lost: int) -> None:
    tokenizer = characters(template)
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "well"}]
    question = {"role": "user", "content": "why?"}
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    whole = tokenizer.apply_chat_template([*messages, question], tokenize=False, add_generation_prompt=True)
    closed = len(text) - text.rindex(">")  # characters that close a turn
    stored = tokenizer(text, add_special_tokens=False)["input_ids"][: len(text) - min(lost, closed)]
    went_on = [*stored, *turn_ids(tokenizer, "why?", stored)]
    assert went_on == tokenizer(whole, add_special_tokens=False)["input_ids"]


def test_a_session_cut_within_a_turn_has_it_closed() -> None:
    tokenizer = characters(CHATML)
    stored = tokenizer("<user\nhel", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(turn_ids(tokenizer, "a", stored)).replace(" ", "") == ">\n<user\na>\n<assistant\n"


def test_nothing_is_closed_where_nothing_was_said() -> None:
    tokenizer = characters(CHATML)
    assert tokenizer.decode(turn_ids(tokenizer, "a", [])).replace(" ", "") == "<user\na>\n<assistant\n"
