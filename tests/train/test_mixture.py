"""Sessions composed for a real model: long enough, whole dialogues, and no document in two files."""

from __future__ import annotations

import gzip
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kvcompress.errors import CheckpointError, InputError
from train.__main__ import app
from train.mixture import Mixture, Pool, token_counter

TOKENS = 100


@pytest.fixture
def corpora(tmp_path: Path) -> tuple[Path, Path]:
    """Eight novels and 200 dialogues, each word of which names its document."""
    novels, chats = tmp_path / "novels.jsonl.gz", tmp_path / "chats.jsonl"
    with gzip.open(novels, "wt") as file:
        for number in range(8):
            file.write(json.dumps({"title": f"{number}", "text": f"novel{number} " * 4000}) + "\n")
    rows = [
        {
            "id": f"{number}",
            "messages": [{"role": role, "content": f"chat{number} says"} for role in ("user", "assistant")],
        }
        for number in range(200)
    ]
    chats.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return novels, chats


def compose(corpora: tuple[Path, Path], out: Path, *options: object) -> tuple[list[dict[str, Any]], str]:
    novels, chats = corpora
    given = ["mixture", "--novels", novels, "--chats", chats, "--model", "reference-lm", "--tokens", TOKENS]
    done = CliRunner().invoke(app, [*map(str, [*given, *options]), "-o", str(out)])
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in out.read_text().splitlines()], done.output


def documents(rows: list[dict[str, Any]]) -> list[str]:
    """Return each document of each session, once a session; an excerpt may end within a word."""
    found = []
    for row in rows:
        words = row.get("text") or " ".join(message["content"] for message in row["messages"])
        found += sorted({word for word in words.split() if re.fullmatch(r"(novel|chat)\d+", word)})
    return found


def test_half_novels_half_chats_of_enough_tokens(corpora: tuple[Path, Path], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from kvcompress.data.sessions import read_sessions, session_token_ids
    from kvcompress.hub.bundled import find_checkpoint

    rows, _ = compose(corpora, tmp_path / "fit.jsonl", "--count", 8)
    assert [row["category"] for row in rows] == ["novel", "chat"] * 4
    assert len({row["id"] for row in rows}) == 8
    tokenizer = AutoTokenizer.from_pretrained(find_checkpoint("reference-lm"))
    for session in read_sessions(tmp_path / "fit.jsonl"):
        assert len(session_token_ids(session, tokenizer)) >= TOKENS
    for row in rows:
        if row["category"] == "chat":
            assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * (
                len(row["messages"]) // 2
            )
            assert "facts" not in row
    assert compose(corpora, tmp_path / "again.jsonl", "--count", 8)[0] == rows


def test_files_that_skip_share_no_document_and_no_dialogue_is_used_twice(
    corpora: tuple[Path, Path], tmp_path: Path
) -> None:
    fit, told = compose(corpora, tmp_path / "fit.jsonl", "--count", 8)
    skip = told.splitlines()[-1].partition(": ")[2].split()
    assert skip[0] == "--skip-novels"
    test, _ = compose(corpora, tmp_path / "test.jsonl", "--count", 6, *skip)
    used = documents(fit) + documents(test)
    assert len(used) == len(set(used))
    assert int(skip[1]) == 4
    assert int(skip[3]) == sum(name.startswith("chat") for name in documents(fit))


def test_chats_of_several_corpora_take_turns(tmp_path: Path) -> None:
    pools = [Pool(name, [[{"role": "user", "content": f"{name}{n}"}] for n in range(9)]) for name in "ab"]

    mixture = Mixture(None, pools, 2, lambda session: len(session.messages), random.Random(0))
    rows = list(mixture.rows(4))
    assert ["".join(m["content"][0] for m in row["messages"]) for row in rows] == ["aa", "bb", "aa", "bb"]
    with pytest.raises(InputError, match="all 9 dialogues of a"):
        list(mixture.rows(12))


def test_more_excerpts_than_novels_come_from_further_places(corpora: tuple[Path, Path], tmp_path: Path) -> None:
    rows, _ = compose(corpora, tmp_path / "fit.jsonl", "--count", 20, "--skip-novels", 5)
    names = [documents([row])[0] for row in rows if row["category"] == "novel"]
    assert len(names) == 10
    assert len(set(names)) == 3


def test_skipping_everything_is_refused(corpora: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="8 documents, and 8 are to be skipped"):
        Pool.of(corpora[0], "text", 7, 8)


def test_a_model_without_a_tokenizer_is_refused_in_a_line(corpora: tuple[Path, Path], tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match="no tokenizer, so its tokens cannot be counted"):
        token_counter(str(model))
    with pytest.raises(CheckpointError, match="no such directory, GGUF file or bundled model"):
        token_counter(str(tmp_path / "missing"))
