"""Measure every variant at several QPs, compare at equal KL, write the table."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import torch

from eval.ablation.variants import Variant, closed_forms, variants
from kvcompress.codec.directory import load_codec
from kvcompress.codec.tinyvae import TinyVAECodec
from kvcompress.data.harvest import tokenized_sessions
from kvcompress.errors import InputError
from kvcompress.fit.settings import FitSettings
from kvcompress.format.container import to_bytes
from kvcompress.hf import capture, load_model, restore
from kvcompress.metrics.fidelity import continuation_logits, kl_nats
from kvcompress.report.tables import markdown_table
from kvcompress_eval.suite.chosen import choose_sessions
from kvcompress_eval.suite.spoken import spoken_command
from kvcompress_eval.suite.subject import Subject, prepare

QPS = (72, 60, 48, 36, 24, 12, 0)
TARGETS_NATS = (0.002, 0.01, 0.04)
START, END = "<!-- ablation -->", "<!-- /ablation -->"
CALIBRATION_SESSIONS = 32

Point = tuple[float, float]
"""Mean file bytes and mean KL in nats."""


def ablate(
    model_name: str,
    codec_name: str,
    sessions: Path,
    others: Sequence[str],
    count: int,
    tokens: int,
    continuation_tokens: int,
    out: Path,
    log: Path | None,
) -> None:
    """Measure the variants of a codec, print and keep the table.

    Args:
        model_name: Model directory or bundled name.
        codec_name: Codec directory or bundled name.
        sessions: Recorded sessions; those not measured are fitted to.
        others: "NAME=DIR" of further codecs of the model, such as those of a training run's earlier stages.
        count: Sessions measured.
        tokens: Tokens stored of each.
        continuation_tokens: Tokens predicted after them.
        out: JSON file of all points.
        log: Markdown file whose table between the markers is replaced.

    Raises:
        InputError: A codec of `others` is not given as NAME=DIR, or the log has no markers.
    """
    if log is not None and START not in log.read_text(encoding="utf-8"):
        raise InputError(f"has no line {START}", "Add it and its end where the table should stand", path=log)
    model, tokenizer = load_model(model_name)
    codec = load_codec(codec_name)
    found = tokenized_sessions(model, tokenizer, sessions)
    chosen, rest = choose_sessions(found, count, tokens, continuation_tokens)
    subjects = [prepare(model, tokenizer, session, ids, tokens) for session, ids in chosen]
    calibration = [capture(model, ids[:tokens], tokenizer=tokenizer) for ids in rest[:CALIBRATION_SESSIONS]]
    known = {field.name for field in fields(FitSettings)}
    given = {name: value for name, value in codec.fitted["settings"].items() if name in known}
    settings = FitSettings(**{**given, "fisher_sessions": CALIBRATION_SESSIONS})
    measured: dict[str, list[Point]] = {}
    for variant in chain(variants(codec, calibration), _named(others), closed_forms(model, tokenizer, rest, settings)):
        measured[variant.name] = [_point(model, variant.codec, subjects, qp) for qp in QPS]
        sys.stderr.write(f"{variant.name}: {measured[variant.name]}\n")
    raw_bytes = sum(subject.snapshot.raw_bytes for subject in subjects) / len(subjects)
    table = table_of(measured, raw_bytes)
    command = spoken_command(sys.argv)
    note = f"{len(subjects)} sessions of {tokens:,} tokens, {continuation_tokens} continued. Made by `{command}`."
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"command": command, "raw_bytes": raw_bytes, "points": measured}, indent=1) + "\n")
    print(f"{table}\n\n{note}")
    if log is not None:
        _write(log, f"{table}\n\n{note}")


def _named(others: Sequence[str]) -> Iterator[Variant]:
    for other in others:
        name, separator, directory = other.partition("=")
        if not separator:
            raise InputError(f"{other!r} is not NAME=DIR", "Give a name and the directory of a codec")
        yield Variant(name, load_codec(directory))


@torch.inference_mode()
def _point(model: Any, codec: TinyVAECodec, subjects: Sequence[Subject], qp: int) -> Point:
    file_bytes = nats = 0.0
    for subject in subjects:
        encoded = codec.encode(subject.snapshot, qp)
        file_bytes += len(to_bytes(encoded)) / len(subjects)
        cache = restore(codec.decode(encoded), model)
        decoded = continuation_logits(model, cache, subject.continuation, subject.snapshot.tokens)
        nats += float(kl_nats(subject.exact, decoded).mean()) / len(subjects)
    return file_bytes, nats


def bytes_at(points: Sequence[Point], nats: float) -> float | None:
    """Return the file bytes at a KL, interpolated between measured QPs on logarithmic scales; None outside them."""
    for (fine_bytes, fine), (coarse_bytes, coarse) in pairwise(points):
        if fine <= nats <= coarse and fine < coarse:
            share = math.log(nats / fine) / math.log(coarse / fine)
            return math.exp((1 - share) * math.log(fine_bytes) + share * math.log(coarse_bytes))
    return None


def table_of(measured: dict[str, list[Point]], raw_bytes: float) -> str:
    """Return the table: size ratios at each KL, and in brackets the file beside that of the whole codec."""
    whole = measured["whole"]
    rows = []
    for name, points in measured.items():
        cells = []
        for nats in TARGETS_NATS:
            ours, theirs = bytes_at(whole, nats), bytes_at(points, nats)
            beside = f" ({theirs / ours:.2f})" if ours and theirs and name != "whole" else ""
            cells.append(f"{raw_bytes / theirs:.0f}x{beside}" if theirs else "not reached")
        rows.append([name, *cells])
    return markdown_table(("codec", *(f"size ratio at KL {nats:g}" for nats in TARGETS_NATS)), rows)


def _write(log: Path, text: str) -> None:
    before, rest = log.read_text(encoding="utf-8").split(START, 1)
    log.write_text(f"{before}{START}\n{text}\n{END}{rest.split(END, 1)[1]}", encoding="utf-8")
