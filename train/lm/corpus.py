"""Read training text: gzipped or plain JSON lines of dialogues (`messages`) or long texts (`text`)."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Message = dict[str, str]

_ANNOTATION = re.compile(r"<<[^>]*>>")


@dataclass(frozen=True, slots=True)
class Corpus:
    """Training text in memory, already split by document into a fitted and a held-out part."""

    dialogues: list[list[Message]] = field(default_factory=list)
    problems: list[list[Message]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


def is_held_out(document_id: str, percent: int = 2) -> bool:
    """Tell whether a document belongs to the held-out part: a stable hash of its id decides."""
    return hashlib.sha256(document_id.encode()).digest()[0] * 100 < percent * 256


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a `.jsonl` or `.jsonl.gz` file."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as handle:
        for line in handle:
            yield json.loads(line)


def _clean(messages: list[Message]) -> list[Message]:
    """Drop calculator annotations and spell out the final-answer mark of worked problems."""
    return [
        {"role": m["role"], "content": _ANNOTATION.sub("", m["content"]).replace("#### ", "The answer is ").strip()}
        for m in messages
    ]


def load_corpus(paths: list[Path], *, held_out: bool = False) -> Corpus:
    """Load one side of the split of all files.

    Args:
        paths: JSON lines files. A row has `messages` (dialogue) or `text` (long text).
        held_out: Return the held-out documents instead of those to train on.
    """
    corpus = Corpus()
    for path in paths:
        for number, row in enumerate(read_rows(path)):
            if is_held_out(str(row.get("id") or row.get("title") or f"{path.name}:{number}")) != held_out:
                continue
            if "text" in row:
                corpus.texts.append(row["text"])
                continue
            messages = _clean(row["messages"])
            is_problem = len(messages) == 2 and "The answer is " in messages[-1]["content"]
            (corpus.problems if is_problem else corpus.dialogues).append(messages)
    return corpus
