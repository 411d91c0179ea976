"""`python -m eval prune`: the leaderboard, or with --fit what scorers learn."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch

from eval.leaderboard.board import BoardSettings, run_board
from eval.leaderboard.fit import CONTINUATION_TOKENS, Example, fit_scorers, measure_example, write_fitted
from eval.leaderboard.report import write_board
from kvcompress.cli.console import progress_bar
from kvcompress.codec.directory import load_codec
from kvcompress.data.harvest import tokenized_sessions
from kvcompress.errors import InputError
from kvcompress.hf import load_model
from kvcompress.hub.bundled import DEFAULT_CODEC
from kvcompress.hub.hub_id import SCORERS_FILE
from kvcompress.hub.places import find_codec
from kvcompress.prune.scorers.profiles import FITTED
from kvcompress_eval.suite.chosen import choose_sessions

FIT_TOKENS = (1024, 640)
"""Tokens stored of the fitting sessions, in turn: importance depends on how long a session is."""


def leaderboard(
    model: str, codec: str, sessions: Path, out: Path, settings: BoardSettings, command: str
) -> dict[str, Any]:
    """Measure, write the report and return the result."""
    with progress_bar("prune") as progress:
        rows = run_board(model, codec, sessions, out, settings, progress)
    facts = {"command": command, "tokens": settings.tokens, "continuation": settings.continuation_tokens}
    return write_board(rows, out, facts)


def fit(
    model_name: str, codec_name: str, sessions: Path, settings: BoardSettings, command: str, output: Path | None = None
) -> dict[str, Any]:
    """Fit scorers on the sessions that the leaderboard does not measure, and write them where plans look for them.

    That is the codec's directory; of the bundled model it is the file beside the scorers, for it serves models that
    have none of their own.

    Args:
        model_name: The model.
        codec_name: Its codec.
        sessions: JSON lines of recorded sessions.
        settings: Of the leaderboard: which sessions it measures.
        command: That was given, for the record.
        output: File to write instead.

    Raises:
        InputError: No session is left.
    """
    model, tokenizer = load_model(model_name)
    codec = load_codec(codec_name)
    rows = tokenized_sessions(model, tokenizer, sessions)
    _, rest = choose_sessions(rows, settings.count, settings.tokens, settings.continuation_tokens)
    examples = list[Example]()
    with progress_bar("fit") as progress:
        for number, ids in enumerate(rest):
            tokens = min(FIT_TOKENS[number % len(FIT_TOKENS)], len(ids) - CONTINUATION_TOKENS)
            if tokens >= CONTINUATION_TOKENS:
                examples.append(measure_example(model, tokenizer, codec, ids, tokens, number))
            progress("sessions", number + 1, len(rest))
        if not examples:
            raise InputError("no session is left to fit scorers to", "Give more or measure fewer with --count")
        fitted = fit_scorers(examples, progress)
    made = {
        "command": command,
        "codec": codec.fingerprint,
        "model": codec.model_fingerprint.weights,
        "sessions": len(examples),
        "tokens": sum(len(example.damage) for example in examples),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    write_fitted(output or place_of(codec_name), fitted, made)
    return made


def place_of(codec_name: str) -> Path:
    """Return the file of what scorers learn with a codec."""
    directory = find_codec(codec_name)
    return FITTED if directory == find_codec(DEFAULT_CODEC) else directory / SCORERS_FILE
