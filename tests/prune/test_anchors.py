"""Anchors are found from tokens and text, whatever a score says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kvcompress.data.sessions import find_session, session_token_ids
from kvcompress.errors import InputError
from kvcompress.hf import load_model
from kvcompress.hub.bundled import find_checkpoint
from kvcompress.prune.anchors import KINDS, Anchor, Text, covered, find_anchors, marked, text_of, turns


def text(*pieces: str) -> Text:
    return Text(pieces, torch.tensor([piece.startswith("<|") for piece in pieces], dtype=torch.bool))


def said(of: Text, kind: str, **options: Any) -> list[str]:
    return ["".join(of.pieces[a.start : a.stop]) for a in find_anchors(of, kinds=[kind], **options)]


BUNDLED = text(
    *(
        "<|bos|>",
        "<|user|>",
        "Sign",
        " every",
        " answer",
        " with",
        " Vefand",
        ".",
        " I",
        " like",
        " tea",
        ".",
        "<|end|>",
    ),
    *("<|assistant|>", "Noted", ".", " At", " 5", ":", "15", "?", " -", " Vefand", "<|end|>"),
    *("<|user|>", "No", ",", " in", " San", " Francisco", ".", "<|end|>"),
)
CHATML = text(
    *("<|im_start|>", "system", "\n", "Be", " brief", ".", "<|im_end|>", "\n"),
    *("<|im_start|>", "user", "\n", "Hello", " there", "<|im_end|>", "\n"),
)
LLAMA3 = text(
    *("<|begin_of_text|>", "<|start_header_id|>", "user", "<|end_header_id|>", "\n\n", "Hello", "<|eot_id|>"),
    *("<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n", "Hi", "<|eot_id|>"),
)


def test_turns_know_their_roles_in_several_templates() -> None:
    def seen(of: Text) -> list[tuple[str, str]]:
        return [(turn.role, "".join(of.pieces[turn.start : turn.stop])) for turn in turns(of)]

    assert [role for role, _ in seen(BUNDLED)] == ["user", "assistant", "user"]
    assert seen(CHATML) == [("system", "Be brief."), ("user", "Hello there")]
    assert seen(LLAMA3) == [("user", "\n\nHello"), ("assistant", "\n\nHi")]
    assert seen(text("Once", " upon")) == [("", "Once upon")]


def test_each_kind_is_found() -> None:
    assert said(BUNDLED, "sink") == ["<|bos|><|user|>Sign every"]
    assert said(BUNDLED, "role") == ["<|user|>", "<|assistant|>", "<|user|>"]
    assert said(BUNDLED, "delimiter").count("<|end|>") == 3
    assert said(BUNDLED, "instruction") == ["Sign every answer with Vefand."]
    assert said(CHATML, "instruction") == ["Be brief."]
    assert said(BUNDLED, "entity") == [" Vefand", " Vefand", " San Francisco"]
    assert said(BUNDLED, "number") == [" 5:15"]


def test_checkpoints_are_ends_of_turns_and_peaks_of_surprise() -> None:
    surprise = torch.zeros(len(BUNDLED.pieces))
    surprise[29] = 9.0
    ends = [".", " Vefand", "."]
    assert said(BUNDLED, "checkpoint") == ends
    assert said(BUNDLED, "checkpoint", surprise=surprise) == [*ends[:2], " Francisco", ends[2]]


def test_marks_are_expressions_or_messages() -> None:
    assert marked(BUNDLED, [r"5:\d+"]) == [Anchor("mark", 17, 20)]
    assert marked(BUNDLED, ["Vefand"]) == [Anchor("mark", 6, 7), Anchor("mark", 22, 23)]
    assert marked(BUNDLED, [], [-1]) == [Anchor("mark", 25, 31)]
    assert int(covered(marked(BUNDLED, ["tea"], [2]), 32).sum()) == 7


@pytest.mark.parametrize(
    ("patterns", "messages", "told"),
    [(["zebra"], [], "matches nothing"), (["("], [], "no regular expression"), ([], [3], "no message 3")],
)
def test_marks_that_match_nothing_are_refused(patterns: list[str], messages: list[int], told: str) -> None:
    with pytest.raises(InputError, match=told):
        marked(BUNDLED, patterns, messages)


def test_an_empty_session_has_no_anchors() -> None:
    assert find_anchors(text()) == []


def test_every_planted_instruction_of_the_recorded_sessions_is_an_anchor(sessions_file: Path) -> None:
    _, tokenizer = load_model(find_checkpoint("reference-lm"))
    checked = 0
    for line in sessions_file.read_text().splitlines():
        row = json.loads(line)
        if not row.get("instructions"):
            continue
        session = find_session(sessions_file, row["id"])
        of = text_of(tokenizer, torch.tensor(session_token_ids(session, tokenizer)))
        assert of.text == tokenizer.decode(session_token_ids(session, tokenizer))
        kept = " ".join(said(of, "instruction"))
        for rule in row["instructions"]:
            assert rule["text"].strip(" .,-") in kept
            checked += 1
    assert checked > 20
    assert set(KINDS) == {"sink", "role", "delimiter", "instruction", "entity", "number", "mark", "checkpoint"}
