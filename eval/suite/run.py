"""The whole suite in one run: prepare sessions, measure every codec on them, controls, economics, report.

Rows are kept in `rows.jsonl` as they are measured. A codec that fails keeps what was measured before and says why; the
others go on.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from eval.rivals.protocol import Calibration, Rival
from eval.rivals.registry import build_all, resolve
from eval.suite.aggregate import codec_entry
from eval.suite.extras import extras
from eval.suite.measure import Row, measure_point
from eval.suite.provenance import provenance
from eval.suite.report import write_suite_report
from eval.suite.subject import Subject, choose_sessions, prepare
from kvcompress.errors import InputError
from kvcompress.harvest import tokenized_sessions
from kvcompress.hf import load_model
from kvcompress.hf.loading import model_directory


@dataclass(frozen=True, slots=True)
class SuiteSettings:
    """How large a run is.

    Attributes:
        tokens: Tokens stored of each session.
        continuation_tokens: Tokens that follow and are predicted.
        count: Sessions measured.
        thorough: Sessions on which the slow measures are taken too.
        calibration: Sessions that rivals are fitted to, at most.
        most_points: Points of a family, at most.
        quick: Whether this is the quick run.
    """

    tokens: int = 1024
    continuation_tokens: int = 128
    count: int = 24
    thorough: int = 3
    calibration: int = 32
    most_points: int = 32
    quick: bool = False


QUICK = SuiteSettings(count=4, thorough=1, calibration=10, most_points=3, quick=True)
LEAST_CALIBRATION = 4


@dataclass(slots=True)
class Suite:
    """One run under way.

    Attributes:
        model: The model.
        tokenizer: Its tokenizer.
        subjects: Sessions made ready.
        calibration: What rivals may be fitted to.
        rivals: Every point, in the order measured.
        rows: Rows by codec name.
        failures: Codec or family name -> why it failed.
    """

    model: Any
    tokenizer: Any
    subjects: list[Subject]
    calibration: Calibration
    rivals: list[Rival] = field(default_factory=list)
    rows: dict[str, list[Row]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def run_suite(
    model_name: str,
    codecs: list[str],
    sessions: Path,
    out: Path,
    settings: SuiteSettings,
    *,
    calibration: Path | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Measure codecs on recorded sessions, write the report, and return the result.

    Args:
        model_name: Model directory or bundled name.
        codecs: Families, codec directories, or "all".
        sessions: JSON lines of sessions.
        out: Directory of rows and report.
        settings: Size of the run.
        calibration: Sessions that rivals are fitted to; if not given, those of `sessions` that are not measured.
        command: The command line, for the report.

    Raises:
        InputError: Nothing can be measured: an unknown codec, no session long enough, none left to calibrate on.
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    names = resolve(codecs)
    model, tokenizer = load_model(model_name)
    chosen, rest = choose_sessions(
        tokenized_sessions(model, tokenizer, sessions), settings.count, settings.tokens, settings.continuation_tokens
    )
    if calibration is not None:
        rest = [ids for _, ids in tokenized_sessions(model, tokenizer, calibration)]
    if len(rest) < LEAST_CALIBRATION:
        remedy = "Give more sessions, measure fewer with --count, or name others with --calibration"
        raise InputError(f"{len(rest)} sessions are left to fit rivals to", remedy, path=sessions)
    out.mkdir(parents=True, exist_ok=True)
    with _bars() as advance:
        subjects = []
        for done, (session, ids) in enumerate(chosen, 1):
            subjects.append(prepare(model, tokenizer, session, ids, settings.tokens))
            advance("exact caches", done, len(chosen))
        suite = Suite(model, tokenizer, subjects, Calibration(model, tokenizer, rest[: settings.calibration]))
        _fit(suite, names, settings, advance)
        _measure(suite, settings, out / "rows.jsonl", advance)
        result = {
            "schema": 1,
            "title": f"{suite.model.config.model_type} sessions of {settings.tokens:,} tokens",
            "quick": settings.quick,
            "started": started.isoformat(timespec="seconds"),
            **provenance(model_directory(model_name), model, subjects, sessions, settings, command),
            "codecs": entries(suite),
            **extras(suite, settings, advance),
        }
    result["wall_seconds"] = time.perf_counter() - clock
    write_suite_report(result, out)
    return result


def _fit(suite: Suite, names: list[str], settings: SuiteSettings, advance: Any) -> None:
    for done, (name, found, reason) in enumerate(build_all(names, suite.calibration), 1):
        suite.rivals += thin(found, settings.most_points)
        if reason is not None:
            suite.failures[name] = reason
        advance("fitting", done, len(names))


def thin(found: list[Rival], most: int) -> list[Rival]:
    """Return at most `most` points of a family, spread over its range; named quality words stay."""
    if len(found) <= most:
        return found
    named = [point for point in found if getattr(point, "quality", None)]
    if len(named) >= most:
        return named
    step = (len(found) - 1) / max(1, most - 1)
    return [found[round(index * step)] for index in range(most)]


def _measure(suite: Suite, settings: SuiteSettings, log: Path, advance: Any) -> None:
    """Measure session by session, so that a run cut short has all codecs on the same sessions."""
    total, done = len(suite.rivals) * len(suite.subjects), 0
    with tempfile.TemporaryDirectory() as temporary, log.open("w", encoding="utf-8") as rows:
        path = Path(temporary) / "session.kvz"
        for number, subject in enumerate(suite.subjects):
            for rival in suite.rivals:
                done += 1
                if rival.name not in suite.failures:
                    _one(suite, rival, subject, path, rows, thorough=number < settings.thorough)
                advance("sessions and codecs", done, total)


def _one(suite: Suite, rival: Rival, subject: Subject, path: Path, rows: Any, *, thorough: bool) -> None:
    try:
        row = measure_point(suite.model, suite.tokenizer, rival, subject, path, thorough=thorough)
    except Exception as error:  # whatever a rival does wrong is its own failure, not the run's
        suite.failures[rival.name] = f"session {subject.session.id}: {type(error).__name__}: {error}"
        return
    suite.rows.setdefault(rival.name, []).append(row)
    rows.write(json.dumps(row) + "\n")
    rows.flush()


def entries(suite: Suite) -> list[dict[str, Any]]:
    """Return the report's entry of every codec, those that failed included."""
    found: list[dict[str, Any]] = []
    values_count = suite.subjects[0].snapshot.values_count
    for rival in suite.rivals:
        reason = suite.failures.get(rival.name)
        rows = suite.rows.get(rival.name)
        if rows:
            found.append(codec_entry(rows, codec_bytes=rival.codec_bytes, values_count=values_count, failed=reason))
        else:
            found.append({"name": rival.name, "family": rival.family, "failed": reason or "was not measured"})
    built = {rival.name for rival in suite.rivals}
    for name, reason in suite.failures.items():
        if name not in built:
            found.append({"name": name, "family": name, "failed": reason})
    return found


@contextmanager
def _bars() -> Iterator[Any]:
    from kvcompress.cli.console import progress_bar

    with torch.inference_mode(), progress_bar("eval") as advance:
        yield advance
