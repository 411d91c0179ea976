"""What a chat template does not show is refused in one line that says where; nothing is dropped unsaid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvcompress.data.sessions import Session, find_session, read_sessions, session_token_ids, token_ages
from kvcompress.errors import FormatError, InputError, KVCompressError
from kvcompress.hub.bundled import find_checkpoint
from tests.hf import chat_templates as kinds

USER = {"role": "user", "content": "Hi"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}],
}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "2"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "One. "}, {"type": "text", "text": "Two."}]}


@pytest.fixture(scope="module")
def bundled() -> Any:
    template = (Path(find_checkpoint("reference-lm")) / "chat_template.jinja").read_text()
    return kinds.tokenizer_with(template, "<|end|>")


def session(path: Path, *messages: Any, **more: Any) -> Session:
    """Return the session of line 2 of a file."""
    file = path / "s.jsonl"
    file.write_text(json.dumps({"id": "a", "messages": [USER]}) + "\n" + json.dumps({"messages": messages} | more))
    return find_session(file, "2")


def refused(path: Path, tokenizer: Any, *messages: Any, **more: Any) -> str:
    with pytest.raises(KVCompressError) as caught:
        session_token_ids(session(path, *messages, **more), tokenizer)
    line = str(caught.value)
    assert line.startswith(f"{path / 's.jsonl'}: line 2")
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ([PARTS], "message 1: .* list of parts"),
        ([USER, CALL], "message 2: .* null"),
        ([USER, {**CALL, "content": "So"}], r"message 2: .* leaves out tool_calls\.function\.name"),
        ([USER, RESULT], "message 2: the model has no token for the role 'tool'"),
        ([{"role": "developer", "content": "x"}], "message 1: the model has no token for the role 'developer'"),
        ([USER, {"role": "Narrator", "content": "x"}], "message 2: .*'Narrator'"),
        ([{**USER, "name": "Ann"}], "message 1: .* leaves out name"),
        ([{**USER, "tool_call_id": "c1"}], "message 1: .* leaves out tool_call_id"),
        ([USER, {"role": "assistant", "content": "x", "reasoning_content": "y"}], "message 2: .* reasoning_content"),
        ([{**USER, "weight": 0}], "message 1: .* leaves out weight"),
    ],
)
def test_the_bundled_template_drops_nothing_without_a_word(
    bundled: Any, tmp_path: Path, messages: list[Any], what: str
) -> None:
    import re

    assert re.search(what, refused(tmp_path, bundled, *messages))


def test_tools_are_shown_or_refused(bundled: Any, tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    assert "leaves out tools" in refused(tmp_path, bundled, USER, tools=tools)
    template = "{% if tools %}{{ tools | tojson }}{% endif %}" + kinds.CHATML
    tokenizer = kinds.tokenizer_with(template, *kinds.IM[::-1][:1], kinds.IM[:1])
    told = tokenizer.decode(session_token_ids(session(tmp_path, USER, tools=tools), tokenizer))
    assert '"name": "add"' in told


def test_templates_that_take_them_show_calls_results_and_parts(tmp_path: Path) -> None:
    tokenizer = kinds.tokenizer_of("chatml with a default system turn")
    found = session(tmp_path, USER, CALL, RESULT)
    told = tokenizer.apply_chat_template([USER, CALL, RESULT], return_dict=False)
    assert session_token_ids(found, tokenizer) == told
    assert '<call>add {"a": 1}</call>' in tokenizer.decode(told)
    tokenizer = kinds.tokenizer_with(kinds.WITH_PARTS, "<|im_end|>", ("<|im_start|>",))
    told = tokenizer.decode(session_token_ids(session(tmp_path, PARTS), tokenizer))
    assert told == "<|im_start|>user\nOne. Two.<|im_end|>\n"
    image = {"role": "user", "content": [{"type": "image", "url": "x"}]}
    assert "'image' that is not text" in refused(tmp_path, tokenizer, image)
    assert "leaves out content.cache" in refused(
        tmp_path, tokenizer, {"role": "user", "content": [{"type": "text", "text": "a", "cache": "b"}]}
    )


def test_a_list_spelled_as_python_spells_it_is_refused(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.role ~ ': ' ~ m.content }}\n{% endfor %}"
    tokenizer = kinds.tokenizer_with(template, "<|end|>")
    assert "does not take a list" in refused(tmp_path, tokenizer, PARTS)
    assert "line 2, message 2: this chat template" in refused(tmp_path, tokenizer, USER, CALL)


def test_roles_that_are_taken_for_others_or_left_out_are_refused(tmp_path: Path) -> None:
    assert "takes the role 'tool' for 'assistant'" in refused(tmp_path, kinds.tokenizer_of("llama 2"), USER, RESULT)
    template = "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}"
    tokenizer = kinds.tokenizer_with(template, "<|end|>")
    assert "leaves out what a message of the role 'system'" in refused(
        tmp_path, tokenizer, {"role": "system", "content": "Be brief."}, USER
    )


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ([{"role": "user", "content": "bad \ud83d half"}], r"message 1: content holds \\ud83d at character 4"),
        ([USER, {**CALL, "content": "x", "name": "\udc00"}], "message 2: name holds"),
        ([USER, {"role": "assistant", "content": None}], "message 2 has no content"),
        ([USER, {"role": "assistant"}], "message 2 has no content"),
        ([{"role": 3, "content": "x"}], "message 1 has a role that is no word"),
        ([{"role": "", "content": "x"}], "message 1 has a role that is no word"),
        ([{"content": "x"}], "message 1 has no role"),
        ([{"role": "user", "content": {"text": "x"}}], "message 1 has content that is neither text"),
        (["x"], "message 1 is not an object"),
    ],
)
def test_messages_that_are_none_are_refused_by_number(tmp_path: Path, messages: list[Any], what: str) -> None:
    with pytest.raises(KVCompressError, match=f"line 2, {what}") as caught:
        session(tmp_path, *messages)
    assert str(caught.value).startswith(str(tmp_path / "s.jsonl"))
    str(caught.value).encode()  # a lone surrogate could not be shown


def test_text_and_keys_that_would_be_lost_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "s.jsonl"
    for line, what in (
        ('{"messages": [{"role": "user", "content": "a", "content": "b"}]}', "'content' occurs twice"),
        ('{"messages": [{"role": "user", "content": "a"}], "text": "b"}', "both messages and text"),
        ('{"text": "\\ud83d"}', "line 1 holds"),
        ('{"id": "\\ud83d", "text": "a"}', "the id holds"),
    ):
        file.write_text(line)
        with pytest.raises(KVCompressError, match=what):
            list(read_sessions(file))
    with pytest.raises(InputError, match="half of a character"):
        session_token_ids(Session("a", [], text="a\ud83d"), kinds.tokenizer_of("chatml"))


def test_empty_content_and_nul_characters_are_content(bundled: Any, tmp_path: Path) -> None:
    assert bundled.decode(session_token_ids(session(tmp_path, {**USER, "content": ""}), bundled)) == (
        "<|bos|><|user|><|end|>"
    )
    said = session_token_ids(session(tmp_path, {**USER, "content": "a\0b"}), bundled)
    assert bundled.decode(said) == "<|bos|><|user|>a\0b<|end|>"
    nothing = {"role": "assistant", "content": "x", "tool_calls": [], "refusal": None, "name": ""}
    assert session_token_ids(session(tmp_path, USER, nothing), bundled)[-1] == bundled.eos_token_id


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    file, line = tmp_path / "s.jsonl", json.dumps({"id": "a", "messages": [USER]})
    file.write_bytes(b"\xef\xbb\xbf" + line.encode() + b"\n" + b"\xef\xbb\xbf" + line.encode() + b"\n\xef\xbb\xbf\n")
    assert [one.messages for one in read_sessions(file)] == [[USER], [USER]]
    for encoding in ("utf-16", "utf-16-be", "utf-32"):
        mark = "\ufeff" if encoding == "utf-16-be" else ""
        file.write_bytes((mark + line).encode(encoding))
        with pytest.raises(InputError, match=r"UTF-16 or UTF-32 text.*UTF-8"):
            list(read_sessions(file))


def test_ages_are_told_under_templates_that_refuse_half_a_conversation() -> None:
    tokenizer = kinds.tokenizer_of("llama 2")
    messages = [{"role": "system", "content": "Be brief."}, USER, {"role": "assistant", "content": "Hello."}]
    found = Session("a", messages, times=(0.0, 10.0, 30.0))
    ages = token_ages(found, tokenizer)
    assert ages is not None
    assert len(ages) == len(session_token_ids(found, tokenizer))
    assert set(ages) == {20.0, 0.0}


def test_a_row_that_is_no_session_is_a_format_error(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text("[" * 100_000)
    with pytest.raises(FormatError, match="line 1 is not JSON"):
        list(read_sessions(tmp_path / "s.jsonl"))
