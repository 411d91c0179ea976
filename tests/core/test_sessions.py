"""Session files: good ones, and every way to be a bad one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvcompress.data.sessions import Session, find_session, read_sessions, session_token_ids, token_ages
from kvcompress.errors import FormatError, InputError
from kvcompress.hub.bundled import find_checkpoint

GOOD = {"id": "a", "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_sessions_come_in_order_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", json.dumps(GOOD), "", json.dumps(GOOD | {"id": "b"}))
    assert [s.id for s in read_sessions(path)] == ["a", "b"]
    assert find_session(path, "b").messages == GOOD["messages"]
    assert find_session(path, None).id == "a"


@pytest.mark.parametrize(
    "line",
    [
        "{not json",
        "[]",
        '"text"',
        json.dumps({"id": "a"}),
        json.dumps({"id": "a", "messages": []}),
        json.dumps({"id": "a", "messages": ["hi"]}),
        json.dumps({"id": "a", "messages": [{"role": "user"}]}),
        json.dumps({"id": "a", "messages": [{"role": "user", "content": 3}]}),
    ],
)
def test_lines_that_are_no_sessions_are_refused_by_number(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "s.jsonl", json.dumps(GOOD), line)
    with pytest.raises(FormatError, match="line 2") as caught:
        list(read_sessions(path))
    assert str(path) in str(caught.value)


def test_empty_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00\x01")
    for name in ("empty.jsonl", "binary.jsonl", "missing.jsonl"):
        with pytest.raises(InputError, match=name):
            list(read_sessions(tmp_path / name))


def test_tokenizer_without_template_is_refused() -> None:
    with pytest.raises(InputError, match="--text"):
        session_token_ids(Session("a", GOOD["messages"]), object())


def timed(*times: object) -> dict[str, object]:
    rows = zip(GOOD["messages"], times, strict=True)
    return GOOD | {"messages": [{**message, "time": time} for message, time in rows]}


def test_messages_may_say_when_they_were_said(tmp_path: Path) -> None:
    for first, second in ((1.5e9, 1.5e9 + 90), ("2017-07-14T02:40:00Z", "2017-07-14T04:41:30+02:00")):
        session = find_session(write(tmp_path / "s.jsonl", json.dumps(timed(first, second))), "a")
        assert session.times == (1.5e9, 1.5e9 + 90)
        assert session.messages == GOOD["messages"]
    half = GOOD | {"messages": [GOOD["messages"][0], {**GOOD["messages"][1], "time": 3}]}
    assert find_session(write(tmp_path / "s.jsonl", json.dumps(half)), "a").times == ()


@pytest.mark.parametrize("time", ["yesterday", None, True, float("nan"), [], "2017-13-01"])
def test_times_that_are_none_are_refused(tmp_path: Path, time: object) -> None:
    with pytest.raises(FormatError, match=r"line 1.*is no time"):
        list(read_sessions(write(tmp_path / "s.jsonl", json.dumps(timed(0, time)))))


def test_every_token_is_as_old_as_its_message() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(find_checkpoint("reference-lm"))
    session = Session("a", GOOD["messages"], times=(100.0, 160.0))
    ages = token_ages(session, tokenizer)
    assert ages is not None
    first = len(session_token_ids(Session("a", GOOD["messages"][:1]), tokenizer))
    assert ages == [60.0] * first + [0.0] * (len(session_token_ids(session, tokenizer)) - first)
    assert token_ages(Session("a", GOOD["messages"]), tokenizer) is None


def test_a_line_says_whether_its_text_spells_special_tokens(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(find_checkpoint("reference-lm"))
    laid_out = session_token_ids(Session("a", GOOD["messages"]), tokenizer)
    row = {"id": "a", "text": tokenizer.decode(laid_out[1:])}
    plain, special = (
        session_token_ids(find_session(write(tmp_path / "s.jsonl", json.dumps(row | more)), "a"), tokenizer)
        for more in ({}, {"special_tokens": True})
    )
    assert special == laid_out
    assert len(plain) > len(laid_out)
    with pytest.raises(FormatError, match="line 1: special_tokens is neither true nor false"):
        find_session(write(tmp_path / "s.jsonl", json.dumps(row | {"special_tokens": "yes"})), "a")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"id": ["a"]}, "the id is neither text nor a whole number"),
        ({"id": True}, "the id is neither"),
        ({"id": 1.5}, "the id is neither"),
        ({"category": "x\ud83d"}, r"category holds .*half of a character"),
        ({"facts": [{"value": "x\ud83d"}]}, r"facts holds .*half of a character"),
        ({"facts": [{"value": "x"}]}, r"stated_message of number 1 of facts is no index.*from 0 to 1"),
        ({"facts": [{"value": "x", "stated_message": 0, "question_message": 2}]}, "question_message of number 1"),
        ({"facts": [{"value": "x", "stated_message": -1, "question_message": 0}]}, "stated_message of number 1"),
        ({"facts": [{"value": 3, "stated_message": 0, "question_message": 0}]}, "number 1 of facts has no value"),
        ({"instructions": [{"stated_message": 0, "position": "end"}]}, "number 1 of instructions has no text"),
    ],
)
def test_what_stands_beside_the_messages_is_checked(more: dict[str, object], told: str, tmp_path: Path) -> None:
    with pytest.raises((FormatError, InputError), match=told):
        list(read_sessions(write(tmp_path / "s.jsonl", json.dumps(GOOD | more))))


def test_an_id_that_two_sessions_have_names_none_of_them(tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", "\n".join([json.dumps(GOOD), json.dumps(GOOD | {"id": "b"}), json.dumps(GOOD)]))
    assert find_session(path, "b").line == 2
    assert find_session(path, None).line == 1
    with pytest.raises(InputError, match=r"lines 1 and 3 both have the id 'a'.*an id of its own"):
        find_session(path, "a")


@pytest.mark.parametrize("line", ["[1, 2]", '"text"', "null", "3"])
def test_a_line_that_is_no_object_is_told_so(line: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="line 1 is no JSON object"):
        list(read_sessions(write(tmp_path / "s.jsonl", line)))
