"""Measure one candidate on one example: a true file, loaded, decoded, restored, and asked every question."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kvcompress.codec.settings import settings_of
from kvcompress.format.container import load, save
from kvcompress.hf import restore
from kvcompress.snapshot import KVSnapshot
from kvcompress_eval.baselines.tinyvae import stored_in_words
from kvcompress_eval.suite.rows import Row, digest
from kvcompress_eval.tasks.candidates import EXACT, Candidate
from kvcompress_eval.tasks.protocol import Example, Judged, Resumed


def digest_of(example: Example) -> str:
    """Return what the rows of an example are known by: its tokens and those of its questions."""
    parts = [example.context, *(question.asked for question in example.questions)]
    return digest([torch.tensor(part, dtype=torch.int64) for part in parts])


def ask_all(model: Any, tokenizer: Any, snapshot: KVSnapshot, example: Example) -> Row:
    """Ask all questions of an example; every one from the same restored cache.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        snapshot: The context's cache, exact or decoded.
        example: Whose questions.

    Returns:
        Scores, places and what was said, answer by answer, and the seconds of asking.
    """
    begun = time.perf_counter()
    resumed = Resumed(model, tokenizer, restore(snapshot, model), len(example.context))
    judged: Sequence[Judged] = [question.ask(resumed) for question in example.questions]
    return {
        "scores": [score for one in judged for score in one.scores],
        "places": [place for question in example.questions for place in question.places],
        "said": [text for one in judged for text in one.said],
        "answer_seconds": time.perf_counter() - begun,
    }


def measure(
    model: Any, tokenizer: Any, candidate: Candidate, example: Example, snapshot: KVSnapshot, path: Path
) -> Row:
    """Return the row of a candidate on an example.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        candidate: Who stores the context.
        example: Context and questions.
        snapshot: The exact cache of the context.
        path: Where the file is written, to be sized by `stat` and read back.
    """
    facts: Row = {"tokens": snapshot.tokens, "raw_bytes": snapshot.raw_bytes}
    if candidate.kind == EXACT:
        return {**facts, **ask_all(model, tokenizer, snapshot, example)}
    assert candidate.encode is not None
    assert candidate.decode is not None
    clock = [time.perf_counter()]
    save(path, candidate.encode(snapshot), force=True)
    clock.append(time.perf_counter())
    encoded = load(path)
    with torch.inference_mode():
        decoded = candidate.decode(encoded)
    clock.append(time.perf_counter())
    return {
        **facts,
        "file_bytes": path.stat().st_size,
        "stored": stored_in_words(encoded),
        "unlike": settings_of(encoded).unlike,
        **ask_all(model, tokenizer, decoded, example),
        "encode_seconds": clock[1] - clock[0],
        "decode_seconds": clock[2] - clock[1],
    }
