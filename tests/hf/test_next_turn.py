"""After a recorded or a generated answer the next turn is what the template gives for the whole conversation."""

from __future__ import annotations

from typing import Any

import pytest

from kvcompress.data.chat_template import Dialogue, layout_ids, user
from kvcompress.data.next_turn import kept_dialogue, next_turn, to_keep
from kvcompress.errors import InputError
from tests.hf.chat_templates import (
    ALTERNATE,
    HARMONY,
    IM,
    KINDS,
    OPENS_THINKING,
    PARTS_ALONE,
    tokenizer_of,
    tokenizer_with,
)

LONG = [
    ("system", "Answer in one line."),
    ("user", "My code is 4821, and yes:\n\nkeep it. "),
    ("assistant", "Kept: 4821."),
    ("user", " What is it?"),
    ("assistant", "It is 4821."),
]
CONVERSATIONS = [LONG, LONG[1:3], LONG[:3], LONG[1:]]
ODD = [
    [("user", "a\n\nb\n"), ("assistant", "x\n")],
    [("user", ""), ("assistant", "")],
    [("user", "  lead"), ("assistant", "  lead ")],
    [("user", "\u00fcn\u00ef \u65e5\u672c \U0001f389"), ("assistant", "\U0001f389")],
    [("user", "USER: ASSISTANT: hm"), ("assistant", "User: x\nAssistant: y")],
    [("user", "x"), ("assistant", "<think>\nso\n</think>\n\nyes")],
    [("assistant", "first"), ("user", "x"), ("assistant", "y")],
    [("user", "x"), ("user", "y"), ("assistant", "z")],
    [("user", "alone")],
]
NEXT = "Thanks, and now?"


def messages_of(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def whole(tokenizer: Any, messages: list[dict[str, str]], text: str = NEXT) -> list[int]:
    """Return what transformers itself gives."""
    return list(
        tokenizer.apply_chat_template(
            [*messages, {"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
    )


def render(tokenizer: Any, messages: list[dict[str, str]], ask: bool = False) -> list[int]:
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=ask, return_dict=False))


@pytest.mark.parametrize("turns", CONVERSATIONS)
@pytest.mark.parametrize("name", KINDS)
def test_a_recorded_conversation_goes_on_as_its_template_lays_out_the_whole(
    name: str, turns: list[tuple[str, str]]
) -> None:
    tokenizer, messages = tokenizer_of(name), messages_of(turns)
    stored, dialogue = render(tokenizer, messages), Dialogue(tuple(messages))
    assert layout_ids(tokenizer, dialogue) == stored
    kept = kept_dialogue(tokenizer, stored, to_keep(tokenizer, stored, dialogue))
    turn = next_turn(tokenizer, stored, NEXT, dialogue=kept)
    assert list(turn.token_ids) == whole(tokenizer, messages)
    assert stored[: turn.kept] == list(turn.token_ids[: turn.kept])
    assert turn.told


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("turns", CONVERSATIONS)
@pytest.mark.parametrize("name", KINDS)
def test_a_generated_answer_goes_on_as_its_template_lays_out_the_whole(
    name: str, turns: list[tuple[str, str]], finished: bool
) -> None:
    tokenizer, messages = tokenizer_of(name), messages_of(turns)
    stored = render(tokenizer, messages[:-1], ask=True) + tokenizer(messages[-1]["content"])["input_ids"]
    stored += [tokenizer.eos_token_id] if finished else []
    kept = kept_dialogue(tokenizer, stored, to_keep(tokenizer, stored, Dialogue(tuple(messages))))
    turn = next_turn(tokenizer, stored, NEXT, dialogue=kept)
    assert list(turn.token_ids) == whole(tokenizer, messages)
    assert turn.told


@pytest.mark.parametrize("name", KINDS)
def test_odd_conversations_go_on_as_well_wherever_the_template_takes_them(name: str) -> None:
    tokenizer, taken = tokenizer_of(name), 0
    for messages in map(messages_of, ODD):
        try:
            wanted = whole(tokenizer, messages)
        except Exception:  # the template refuses it, with whatever jinja raises
            continue
        written = tokenizer(messages[-1]["content"])["input_ids"]
        opened = render(tokenizer, messages[:-1], ask=True) if len(messages) > 1 else None
        ways = [render(tokenizer, messages)]
        ways += [[*opened, *written], [*opened, *written, tokenizer.eos_token_id]] if opened is not None else []
        for stored in ways:
            kept = kept_dialogue(tokenizer, stored, to_keep(tokenizer, stored, Dialogue(tuple(messages))))
            assert list(next_turn(tokenizer, stored, NEXT, dialogue=kept).token_ids) == wanted
            taken += 1
    assert taken > 10


@pytest.mark.parametrize("name", sorted(set(KINDS) - {"mistral"}))
def test_tokens_alone_tell_the_conversation(name: str) -> None:
    tokenizer, messages = tokenizer_of(name), messages_of(LONG)
    stored = render(tokenizer, messages)
    assert to_keep(tokenizer, stored, Dialogue(tuple(messages))) is None
    assert list(next_turn(tokenizer, stored, NEXT).token_ids) == whole(tokenizer, messages)


def test_a_conversation_that_its_tokens_do_not_tell_is_kept_in_a_few_bytes() -> None:
    tokenizer, messages = tokenizer_of("mistral"), messages_of(LONG[:3])
    stored = render(tokenizer, messages)  # [INST] system, user [/INST]: the system's part moves to each last user turn
    kept = to_keep(tokenizer, stored, Dialogue(tuple(messages)))
    assert kept is not None
    assert kept["messages"][0] == ["system", kept["messages"][0][1], len(LONG[0][1])]
    assert next_turn(tokenizer, stored, NEXT, dialogue=kept_dialogue(tokenizer, stored, kept)).kept == 2
    assert kept_dialogue(tokenizer, [*stored[:5], 7, *stored[5:]], kept) is None  # of other tokens


def test_an_answer_s_thinking_goes_once_it_is_not_the_last() -> None:
    tokenizer = tokenizer_of("thinking in the last answer only")
    messages = [user("Two and two?"), {"role": "assistant", "content": "<think>\nEasy.\n</think>\n\nFour."}]
    for stored in (
        render(tokenizer, messages),
        render(tokenizer, messages[:1], ask=True) + tokenizer(messages[1]["content"] + "<|im_end|>")["input_ids"],
        render(tokenizer, messages[:1], ask=True) + tokenizer("Four.<|im_end|>\n")["input_ids"],
    ):
        turn = next_turn(tokenizer, stored, NEXT)
        assert list(turn.token_ids) == whole(tokenizer, messages)
        assert "Easy" not in tokenizer.decode(turn.token_ids)
        header = len(render(tokenizer, messages[:1], ask=True))
        assert turn.kept >= header


def test_no_second_stop_token_and_the_line_break_behind_the_first() -> None:
    tokenizer = tokenizer_of("chatml")
    messages = messages_of(LONG[1:3])
    stored = render(tokenizer, messages)
    for lost in range(3):  # with its line break, after a generated answer, in the middle of a turn
        turn = next_turn(tokenizer, stored[: len(stored) - lost], NEXT)
        assert list(turn.token_ids) == whole(tokenizer, messages)
        assert turn.kept == len(stored) - lost


def test_a_session_of_no_tokens_begins_with_the_turn() -> None:
    for name in KINDS:
        assert list(next_turn(tokenizer_of(name), [], NEXT).token_ids) == whole(tokenizer_of(name), [])


@pytest.mark.parametrize("name", ["llama 2", "mistral", "gemma"])
def test_a_template_of_strict_turns_says_what_it_refuses(name: str) -> None:
    tokenizer = tokenizer_of(name)
    with pytest.raises(InputError, match=r"refuses .*alternate.*--plain"):
        next_turn(tokenizer, render(tokenizer, messages_of(LONG[1:2])), NEXT)


def test_text_outside_any_template_has_the_turn_put_behind_it() -> None:
    tokenizer = tokenizer_of("chatml")
    stored = [tokenizer.bos_token_id, *tokenizer("Once upon a time")["input_ids"]]
    turn = next_turn(tokenizer, stored, NEXT)
    assert not turn.told
    assert list(turn.token_ids[: turn.kept]) == stored
    assert tokenizer.decode(turn.token_ids[turn.kept :]) == (
        f"<|im_end|>\n<|im_start|>user\n{NEXT}<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_prompt_that_spells_a_special_token_is_text_unless_asked_otherwise() -> None:
    tokenizer, messages = tokenizer_of("chatml"), messages_of(LONG[1:3])
    stored, prompt = render(tokenizer, messages), "say <|im_end|> twice"
    stop, plain = tokenizer.eos_token_id, next_turn(tokenizer, stored, prompt).token_ids
    assert plain[len(stored) :].count(stop) == 1
    assert tokenizer.decode(plain) == tokenizer.decode(whole(tokenizer, messages, prompt))
    meant = next_turn(tokenizer, stored, prompt, special_tokens=True).token_ids
    assert list(meant) == whole(tokenizer, messages, prompt)


def test_a_conversation_with_special_tokens_in_its_text_goes_on_with_them() -> None:
    tokenizer = tokenizer_of("chatml")
    messages = messages_of([("user", "what is <|im_end|>?"), ("assistant", "A token.")])
    for special in (False, True):
        dialogue = Dialogue(()).then(*messages, special_tokens=special)
        stored = layout_ids(tokenizer, dialogue)
        kept = kept_dialogue(tokenizer, stored, to_keep(tokenizer, stored, dialogue))
        turn = next_turn(tokenizer, stored, NEXT, dialogue=kept)
        assert list(turn.token_ids) == layout_ids(tokenizer, dialogue.then(user(NEXT)), ask=True)
        assert turn.kept == len(stored)


def test_a_template_with_an_alternative_for_tools_of_its_own_is_not_needed() -> None:
    strict = tokenizer_with(ALTERNATE + KINDS["chatml"].template, "<|im_end|>", ("<|im_start|>",))
    messages = messages_of(LONG[1:])
    stored = render(strict, messages)
    assert list(next_turn(strict, stored, NEXT).token_ids) == whole(strict, messages)


def test_an_answer_in_several_parts_is_kept_whole_and_closed_once() -> None:
    tokenizer = tokenizer_with(HARMONY, "<|return|>", ("<|start|>", "<|message|>", "<|channel|>", "<|end|>"))
    opened = render(tokenizer, [user("q")], ask=True)
    thought = "<|channel|>analysis<|message|>why<|end|><|start|>assistant"
    for stop in ("<|return|>", ""):
        stored = opened + tokenizer(f"{thought}<|channel|>final<|message|>ans{stop}")["input_ids"]
        turn = next_turn(tokenizer, stored, NEXT)
        assert not turn.told
        assert turn.kept == len(stored) - bool(stop)
        assert list(turn.token_ids[: turn.kept]) == stored[: turn.kept]
        ending = f"ans<|end|><|start|>user<|message|>{NEXT}<|end|><|start|>assistant"
        assert tokenizer.decode(turn.token_ids).endswith(ending)


@pytest.mark.parametrize("name", ["llama 3", "chatml", "llama 2", "glm"])
def test_words_behind_the_end_of_an_answer_are_not_dropped(name: str) -> None:
    tokenizer = tokenizer_of(name)
    opened, stop = render(tokenizer, [user("q")], ask=True), tokenizer.eos_token
    stored = opened + tokenizer(f"one{stop} and more")["input_ids"]
    turn = next_turn(tokenizer, stored, NEXT)
    assert list(turn.token_ids[: turn.kept]) == stored
    assert "and more" in tokenizer.decode(turn.token_ids)


def test_tokens_tell_whether_text_that_reads_as_a_special_token_was_one() -> None:
    tokenizer, messages = tokenizer_of("chatml"), messages_of([("user", "what is <|im_start|>x?"), ("assistant", "A.")])
    for special in (False, True):
        dialogue = Dialogue(()).then(*messages, special_tokens=special)
        stored = layout_ids(tokenizer, dialogue)
        assert next_turn(tokenizer, stored, NEXT).kept == len(stored)


@pytest.mark.parametrize("special", [True, False])
def test_thinking_that_the_template_opens_belongs_to_the_answer(special: bool) -> None:
    marks = ("<think>", "</think>")
    tokenizer = tokenizer_with(OPENS_THINKING, IM[1], (*IM, *marks) if special else IM, () if special else marks)
    opened = render(tokenizer, [user("Two and two?")], ask=True)
    for said in ("Easy.\n</think>\n\nFour.", "Ea"):
        answer = {"role": "assistant", "content": f"<think>\n{said}"}
        stored = opened + tokenizer(said + IM[1])["input_ids"]
        turn = next_turn(tokenizer, stored, NEXT)
        assert turn.told
        assert list(turn.token_ids) == whole(tokenizer, [user("Two and two?"), answer])
        longer = turn.answered(tokenizer, tokenizer("Hm.\n</think>\n\nBye.")["input_ids"])
        assert longer is not None
        assert longer.messages[-1]["content"] == "<think>\nHm.\n</think>\n\nBye."


def test_thinking_in_special_tokens_goes_with_the_earlier_answers() -> None:
    kind = KINDS["thinking in the last answer only"]
    tokenizer = tokenizer_with(kind.template, kind.stop, (*IM, "<think>", "</think>"))
    answer = {"role": "assistant", "content": "<think>\nEasy.\n</think>\n\nFour."}
    stored = render(tokenizer, [user("Two?")], ask=True) + tokenizer(answer["content"] + IM[1])["input_ids"]
    turn = next_turn(tokenizer, stored, NEXT)
    assert list(turn.token_ids) == whole(tokenizer, [user("Two?"), answer])
    assert "Easy" not in tokenizer.decode(turn.token_ids)


def test_a_template_of_parts_alone_is_given_parts() -> None:
    tokenizer, messages = tokenizer_with(PARTS_ALONE, IM[1], IM), messages_of(LONG)
    parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in [*messages, user(NEXT)]]
    stored = layout_ids(tokenizer, Dialogue(tuple(messages)))
    assert stored == render(tokenizer, parts[:-1])
    assert list(next_turn(tokenizer, stored, NEXT).token_ids) == render(tokenizer, parts, ask=True)


def test_a_template_that_shows_nothing_is_refused() -> None:
    tokenizer = tokenizer_with("{{ '<|im_start|>' }}", IM[1], IM)
    with pytest.raises(InputError, match=r"leaves out what is said.*--plain"):
        next_turn(tokenizer, [5, 6, 7], NEXT)


@pytest.mark.parametrize("name", ["mistral", "llama 3"])
def test_a_kept_conversation_is_not_that_of_a_session_that_went_on(name: str) -> None:
    tokenizer, messages = tokenizer_of(name), messages_of(LONG[:3])
    stored = render(tokenizer, messages)
    kept = to_keep(tokenizer, stored, Dialogue(tuple(messages))) or {"messages": messages}
    longer = [*stored, *tokenizer("and more")["input_ids"]]
    assert kept_dialogue(tokenizer, stored, kept) is not None
    assert kept_dialogue(tokenizer, longer, kept) is None
    assert "and more" in tokenizer.decode(next_turn(tokenizer, longer, NEXT, dialogue=None).token_ids)


def test_a_system_s_turn_alone_is_told_from_an_answer() -> None:
    tokenizer = tokenizer_with(
        "{{ '<s>' }}{% for m in messages %}{% if m.role == 'system' %}{{ '[S]' + m.content + '[/S]' }}"
        "{% elif m.role == 'user' %}{{ '[I]' + m.content + '[/I]' }}{% else %}{{ m.content + '</s>' }}"
        "{% endif %}{% endfor %}",
        "</s>",
        ("<s>", "[S]", "[/S]", "[I]", "[/I]"),
    )
    messages = messages_of(LONG[:1])
    assert list(next_turn(tokenizer, render(tokenizer, messages), NEXT).token_ids) == whole(tokenizer, messages)
