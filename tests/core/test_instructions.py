"""Standing instructions: which are in force, and whether an answer keeps them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kvcompress.data.sessions import Session, read_sessions, session_token_ids
from kvcompress.errors import FormatError
from kvcompress.hf import capture, load_model, restore
from kvcompress.hub.bundled import DEFAULT_MODEL, find_checkpoint
from kvcompress.metrics.instructions import PROBES, Rule, count_kept, rules


def test_rules_look_where_they_say() -> None:
    assert Rule("start", "Well. ").is_kept(" Well. The code is 4.")
    assert not Rule("start", "Well. ").is_kept("The code is 4. Well. ")
    assert Rule("end", "- Var").is_kept("Sure. - Var\n")
    assert not Rule("end", "- Var").is_kept("- Var sure")
    assert Rule("anywhere", " Over.").is_kept("Yes. Over. - Var")
    assert not Rule("anywhere", " Over.").is_kept("It is over.")


def test_a_rule_given_after_the_stored_tokens_is_not_asked_for() -> None:
    _, tokenizer = load_model(find_checkpoint(DEFAULT_MODEL))
    messages = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello."}] * 4
    given = {"position": "end", "text": "Over."}
    session = Session("s", messages, instructions=[given | {"stated_message": n} for n in (0, 6)])
    ids = session_token_ids(session, tokenizer)
    assert rules(session, tokenizer, ids) == [Rule("end", "Over.")] * 2
    assert rules(session, tokenizer, ids[: len(ids) // 2]) == [Rule("end", "Over.")]


def test_checks_are_counted_per_probe_and_leave_the_cache_alone() -> None:
    model, tokenizer = load_model(find_checkpoint(DEFAULT_MODEL))
    ids = torch.tensor(session_token_ids(Session("s", [{"role": "user", "content": "Hello."}]), tokenizer))
    cache = restore(capture(model, ids), model)
    kept = count_kept(model, cache, tokenizer, [Rule("anywhere", ""), Rule("anywhere", "\N{SNOWMAN}")], ids)
    assert kept == len(PROBES)  # the empty text is in every answer, the snowman in none
    assert cache.layers[0].get_seq_length() == len(ids)


def test_plain_text_sessions_need_no_chat_template(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps({"id": "t", "text": "Once upon a time."}) + "\n")
    (session,) = read_sessions(path)
    assert session.text == "Once upon a time."
    assert session.messages == []
    _, tokenizer = load_model(find_checkpoint(DEFAULT_MODEL))
    tokenizer.chat_template = None
    ids = session_token_ids(session, tokenizer)
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[1:]) == "Once upon a time."


@pytest.mark.parametrize("bad", ['"x"', "[1]", '{"a": 1}'])
def test_metadata_of_the_wrong_kind_is_refused(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "a"}], "instructions": ' + bad + "}\n")
    with pytest.raises(FormatError, match="instructions"):
        list(read_sessions(path))
