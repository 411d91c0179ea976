"""The leaderboard of scorers: measure every candidate on recorded sessions, row by row, and go on where it stopped.

A row is one candidate on one session, after a true decode and resume: KL over what really followed, agreement, KL where
the context matters, planted facts recalled, standing instructions kept. Rows are appended to `rows.jsonl`; a run that
finds rows there measures the others only.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eval.leaderboard.candidates import Case, Entry, enter, names
from kvcompress.codec.directory import load_codec
from kvcompress.data.harvest import tokenized_sessions
from kvcompress.errors import FormatError, InputError
from kvcompress.hf import load_model, restore
from kvcompress.metrics.fidelity import continuation_logits
from kvcompress.metrics.instructions import checks
from kvcompress_eval.suite.chosen import choose_sessions
from kvcompress_eval.suite.damage import damage
from kvcompress_eval.suite.sensitive import sensitive_positions
from kvcompress_eval.suite.subject import Subject, prepare, recalled

ROWS = "rows.jsonl"
Row = dict[str, Any]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class BoardSettings:
    """Size of a run.

    Attributes:
        qualities: Quality words whose file sizes are met.
        tokens: Tokens stored of each session.
        continuation_tokens: Tokens predicted after them.
        count: Sessions.
        compared: Quality words at which every scorer competes; at the others only the default search.
    """

    qualities: tuple[str, ...] = ("transparent", "high", "usable")
    tokens: int = 1024
    continuation_tokens: int = 128
    count: int = 24
    compared: tuple[str, ...] = ("transparent", "high", "usable")


def run_board(
    model_name: str, codec_name: str, sessions: Path, out: Path, settings: BoardSettings, progress: Progress
) -> list[Row]:
    """Measure what is not measured yet and return all rows of this size.

    Raises:
        InputError: No session is long enough, or the codec lacks a quality word.
    """
    model, tokenizer = load_model(model_name)
    if tokenizer is None:
        raise InputError("the model has no tokenizer", "Save one beside the model", path=model_name)
    codec = load_codec(codec_name)
    for quality in settings.qualities:
        codec.qp_of(quality)
    rows = tokenized_sessions(model, tokenizer, sessions)
    chosen, _ = choose_sessions(rows, settings.count, settings.tokens, settings.continuation_tokens)
    out.mkdir(parents=True, exist_ok=True)
    known = read_rows(out / ROWS)
    stamp = {"tokens": settings.tokens, "codec": codec.fingerprint[:16]}
    measured = {key(row) for row in known if {name: row[name] for name in stamp} == stamp}
    wanted, done = names(settings.qualities, settings.compared), 0
    for session, ids in chosen:
        missing = [pair for pair in wanted if (session.id, *pair) not in measured]
        done += len(wanted) - len(missing)
        if not missing:
            continue
        subject = prepare(model, tokenizer, session, ids, settings.tokens)
        case = Case(model, tokenizer, codec, subject)
        kept = checks(model, subject.cache, tokenizer, subject.rules, subject.snapshot.token_ids)
        for board, candidate in missing:
            try:
                row = measure(model, tokenizer, subject, enter(case, board, candidate), kept) | stamp
            except InputError as error:  # a budget below what the guaranteed anchors cost is a result too
                row = {"session": session.id, "board": board, "candidate": candidate, "failed": str(error)} | stamp
            known.append(row)
            with (out / ROWS).open("a", encoding="utf-8") as log:
                log.write(json.dumps(row) + "\n")
            done += 1
            progress("candidates and sessions", done, len(wanted) * len(chosen))
    used = {session.id for session, _ in chosen}
    return [r for r in known if r["session"] in used and {name: r[name] for name in stamp} == stamp]


def read_rows(path: Path) -> list[Row]:
    """Return the rows of an earlier run; a last line that was cut off is left out.

    Raises:
        FormatError: Another line is damaged.
    """
    if not path.exists():
        return []
    lines, rows = path.read_text(encoding="utf-8").splitlines(), list[Row]()
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise FormatError(f"line {number} is not JSON", "Remove the file", path=path) from error
    if len(rows) < len(lines):
        path.write_text("".join(line + "\n" for line in lines[: len(rows)]), encoding="utf-8")
    return rows


def key(row: Row) -> tuple[str, str, str]:
    """Return what a row is of."""
    return row["session"], row["board"], row["candidate"]


@torch.inference_mode()
def measure(model: Any, tokenizer: Any, subject: Subject, entry: Entry, exact_kept: list[list[bool]]) -> Row:
    """Return the row of one entry.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        subject: The session.
        entry: What is resumed from.
        exact_kept: For each standing instruction whether each probe's answer from the exact cache keeps it. One that
            the exact cache keeps after some probe and the entry after none is lost.
    """
    tokens, rest = subject.snapshot.tokens, subject.continuation
    cache = restore(entry.decoded, model)
    logits = continuation_logits(model, cache, rest, tokens)
    moved = damage(subject.exact, logits)
    per_token = moved.kl_nats.cpu()
    sensitive = sensitive_positions(subject.worth_nats)
    found = recalled(model, cache, tokenizer, subject.questions, tokens)
    kept = checks(model, cache, tokenizer, subject.rules, subject.snapshot.token_ids)
    return {
        "session": subject.session.id,
        "category": subject.session.category,
        "board": entry.board,
        "candidate": entry.candidate,
        "file_bytes": entry.file_bytes,
        "raw_bytes": subject.snapshot.raw_bytes,
        "kept_tokens": max((len(layer.positions) for layer in entry.decoded.layers), default=0),
        "kl_nats": float(per_token.mean()),
        "worth_nats": float(subject.worth_nats.mean()),
        "sensitive": int(sensitive.sum()),
        "sensitive_kl_nats": float(per_token[sensitive].sum()),
        "top1_agreement": float(moved.same.double().mean()),
        "asked": len(subject.questions),
        "recalled": sum(found),
        "recalled_exact_cache": sum(subject.recalled),
        "rules": len(subject.rules),
        "rules_kept": sum(map(sum, kept)),
        "rules_kept_exact_cache": sum(map(sum, exact_kept)),
        "rules_lost": sum(any(exact) and not any(ours) for ours, exact in zip(kept, exact_kept, strict=True)),
        "seconds": round(entry.seconds, 4),
    }
