"""Session files: good ones, and every way to be a bad one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvcompress.errors import FormatError, InputError
from kvcompress.sessions import Session, find_session, read_sessions, session_token_ids

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
