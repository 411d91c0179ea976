"""Recording, storing and going on from conversations by the command, under chat templates of several kinds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import kvcompress as kv
from kvcompress.cli.app import app
from kvcompress.data import next_turn as next_turn_module
from kvcompress.errors import InputError, KVCompressError
from kvcompress.format.container import load
from kvcompress.format.raw_snapshot import load_raw
from kvcompress.hub.bundled import find_checkpoint
from tests.cli.test_commands import refused, run

OPEN = "{{ '<|' + m.role + '|>' }}"
ASK = "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
TEMPLATES = {
    "line breaks behind turns": "{% for m in messages %}" + OPEN + "{{ m.content + '<|end|>\n' }}{% endfor %}" + ASK,
    "a thought before the last answer": (
        "{% for m in messages %}" + OPEN + "{% if loop.last and m.role == 'assistant' %}{{ '(thinks of nothing)\n' }}"
        "{% endif %}{{ m.content + '<|end|>\n' }}{% endfor %}" + ASK
    ),
    "the system's words before the last turn": (
        "{{ '<|bos|>' }}{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
        "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages if m.role != 'system' %}"
        + OPEN
        + "{% if messages[0].role == 'system' and loop.revindex0 == messages | length - 1 - ns.last %}"
        "{{ messages[0].content + '\n\n' }}{% endif %}{{ m.content + '<|end|>' }}{% endfor %}" + ASK
    ),
}
MESSAGES = [
    {"role": "system", "content": "Answer briefly."},
    {"role": "user", "content": "My locker code is 4821."},
    {"role": "assistant", "content": "I will remember it."},
]
NEXT = "What is my locker code?"


@pytest.fixture(scope="module", params=TEMPLATES)
def model_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model with another template."""
    place = tmp_path_factory.mktemp("model") / "model"
    shutil.copytree(find_checkpoint("reference-lm"), place)
    (place / "chat_template.jinja").write_text(TEMPLATES[request.param])
    return place


def whole_of(tokenizer: Any, messages: list[dict[str, Any]]) -> list[int]:
    asked = [*messages, {"role": "user", "content": NEXT}]
    return list(tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False))


def answered(model: Any, ids: list[int]) -> list[int]:
    found = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)
    return list(found[0, len(ids) :].tolist())


def stored_and_resumed(raw: Path, model_path: Path, *options: object) -> list[int]:
    file = raw.with_suffix(".kvz")
    run("encode", raw, "-o", file, "--lossless")
    asked = ("--model", model_path, "--prompt", NEXT, "--max-new-tokens", 12, *options)
    return list(run("resume", file, *asked)["new_token_ids"])


def test_a_recorded_session_goes_on_as_generate_does_on_the_whole(model_path: Path, tmp_path: Path) -> None:
    model, tokenizer = kv.load_model(model_path)
    sessions, raw = tmp_path / "s.jsonl", tmp_path / "raw.safetensors"
    sessions.write_text(json.dumps({"id": "a", "messages": MESSAGES}))
    run("record", "--session", sessions, "--model", model_path, "-o", raw)
    whole = whole_of(tokenizer, MESSAGES)
    assert stored_and_resumed(raw, model_path) == answered(model, whole)
    cache, ids = kv.next_turn(raw.with_suffix(".kvz"), model, tokenizer, NEXT)
    assert ids.tolist() == [whole]
    assert 0 < cache.get_seq_length() < len(whole)
    found = model.generate(ids, past_key_values=cache, max_new_tokens=12, do_sample=False)
    assert found[0, len(whole) :].tolist() == answered(model, whole)


def test_a_chat_goes_on_as_generate_does_on_the_whole(model_path: Path, tmp_path: Path) -> None:
    model, tokenizer = kv.load_model(model_path)
    raw, said = tmp_path / "raw.safetensors", "\ufeffMy locker code is 4821.\nAnd <|end|> is no token.\n\n"
    command = ["record", "--chat", "--model", str(model_path), "-o", str(raw)]
    assert CliRunner().invoke(app, command, input=said).exit_code == 0
    messages: list[dict[str, Any]] = []
    for line in ("My locker code is 4821.", "And <|end|> is no token."):
        messages.append({"role": "user", "content": line})
        ids = kv_layout(tokenizer, messages)
        found = model.generate(torch.tensor([ids]), max_new_tokens=80, do_sample=False)[0].tolist()
        messages.append({"role": "assistant", "content": tokenizer.decode(found[len(ids) :], skip_special_tokens=True)})
    assert load_raw(raw).token_ids.tolist() == found
    asked = kv_layout(tokenizer, [*messages, {"role": "user", "content": NEXT}])
    assert stored_and_resumed(raw, model_path) == answered(model, asked)


def kv_layout(tokenizer: Any, messages: list[dict[str, Any]]) -> list[int]:
    from kvcompress.data.sessions import Session, session_token_ids

    return session_token_ids(Session("", messages), tokenizer, ask=True)


def test_messages_are_kept_only_where_the_tokens_do_not_tell_them(model_path: Path, tmp_path: Path) -> None:
    model, tokenizer = kv.load_model(model_path)
    ids = tokenizer.apply_chat_template(MESSAGES, return_dict=False)
    told = {"tokens": tmp_path / "a.kvz", "both": tmp_path / "b.kvz"}
    kv.save_session(told["tokens"], model, ids, tokenizer=tokenizer, lossless=True)
    kv.save_session(told["both"], model, ids, tokenizer=tokenizer, messages=MESSAGES, lossless=True)
    grown = told["both"].stat().st_size - told["tokens"].stat().st_size
    moves = "namespace" in tokenizer.chat_template
    assert 0 < grown < 120 if moves else grown == 0
    assert kv.next_turn(told["both"], model, tokenizer, NEXT)[1].tolist() == [whole_of(tokenizer, MESSAGES)]
    with pytest.raises(InputError, match="other tokens"):
        kv.save_session(tmp_path / "c.kvz", model, ids, tokenizer=tokenizer, messages=MESSAGES[:2], lossless=True)
    with pytest.raises(InputError, match="tokenizer"):
        kv.save_session(tmp_path / "c.kvz", model, ids, messages=MESSAGES, lossless=True)


def test_a_damaged_conversation_is_told_and_one_of_other_tokens_ignored(tmp_path: Path) -> None:
    from dataclasses import replace

    from kvcompress.data.next_turn import next_turn_of

    model, tokenizer = kv.load_model("reference-lm")
    ids = tokenizer.apply_chat_template(MESSAGES, return_dict=False)
    snapshot, whole = kv.capture(model, ids, tokenizer=tokenizer), whole_of(tokenizer, MESSAGES)
    for kept in ({"messages": [{"role": "user", "content": "Else."}]}, {"messages": []}):
        odd = replace(snapshot, origin=replace(snapshot.origin, conversation=kept))
        assert list(next_turn_of(tokenizer, odd, NEXT).token_ids) == whole
    broken: list[dict[str, Any]] = [{}, {"messages": 3}, {"messages": [["user", 0]]}, {"messages": [["user", 5, 9999]]}]
    broken += [{"messages": [3]}, {"messages": [{"content": "x"}]}, {"messages": [["user", -1, 2]]}]
    for kept in broken:
        odd = replace(snapshot, origin=replace(snapshot.origin, conversation=kept))
        with pytest.raises(KVCompressError, match="damaged"):
            next_turn_of(tokenizer, odd, NEXT)


def test_text_files_are_read_as_people_save_them(tmp_path: Path) -> None:
    text, raw = tmp_path / "t.txt", tmp_path / "raw.safetensors"
    text.write_bytes(b"\xef\xbb\xbfSay <|end|> now")
    run("record", "--text", text, "-o", raw)
    plain = load_raw(raw).token_ids.tolist()
    tokenizer = kv.load_model("reference-lm")[1]
    assert tokenizer.decode(plain) == "<|bos|>Say <|end|> now"
    assert tokenizer.eos_token_id not in plain
    run("record", "--text", text, "-o", raw, "--special-tokens-in-text", "--force")
    assert tokenizer.eos_token_id in load_raw(raw).token_ids.tolist()
    text.write_bytes(b"one\r\ntwo\rthree\n")
    run("record", "--text", text, "-o", raw, "--force")
    assert tokenizer.decode(load_raw(raw).token_ids.tolist()) == "<|bos|>one\r\ntwo\rthree\n"
    text.write_text("Say", encoding="utf-16")
    assert "UTF-16" in refused("record", "--text", text, "-o", tmp_path / "b.safetensors")


def test_a_prompt_is_text_and_what_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tmp_path / "raw.safetensors"
    (tmp_path / "s.jsonl").write_text(json.dumps({"id": "a", "messages": MESSAGES}))
    run("record", "--session", tmp_path / "s.jsonl", "-o", raw)
    with pytest.raises(InputError, match="--prompt holds"):
        CliRunner().invoke(app, ["resume", str(raw), "--prompt", "bad \udcff"], catch_exceptions=False)
    fed: list[tuple[int, ...]] = []
    plain = next_turn_module.next_turn
    monkeypatch.setattr(
        next_turn_module, "next_turn", lambda *a, **more: (turn := plain(*a, **more), fed.append(turn.token_ids))[0]
    )
    for more in ((), ("--special-tokens-in-text",)):
        run("resume", raw, "--prompt", "<|end|>", "--max-new-tokens", 1, *more)
    assert [ids.count(2) for ids in fed] == [4, 5]


def test_a_chat_says_a_line_that_is_no_text_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kvcompress.cli import record

    lines = iter(["half \ud83d", "whole"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert record._line() == "whole"


def test_what_matches_nothing_is_named_as_typed_and_with_its_session(tmp_path: Path) -> None:
    raw = tmp_path / "raw.safetensors"
    (tmp_path / "s.jsonl").write_text(json.dumps({"id": "walk", "messages": MESSAGES}))
    run("record", "--session", tmp_path / "s.jsonl", "-o", raw)
    line = refused("encode", raw, "-o", tmp_path / "a.kvz", "--plan", "quick", "--keep", r"code was \d+")
    assert r"--keep 'code was \d+' matches nothing" in line
    assert "session 'walk' of s.jsonl" in line
    run("encode", raw, "-o", tmp_path / "a.kvz", "--lossless")
    assert load(tmp_path / "a.kvz").tokens == load_raw(raw).tokens
